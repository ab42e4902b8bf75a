//! Filters that look at nothing but the number of a call: a binary search, in the language of
//! seccomp(2).

use seccompiler::sock_filter;

/// Where the number of the call is, in `struct seccomp_data`.
const NUMBER: u32 = 0;

/// A program that answers `listed` to the calls with these numbers, and `otherwise` to all others.
pub(super) fn program(numbers: &[libc::c_long], listed: u32, otherwise: u32) -> Vec<sock_filter> {
    let mut numbers: Vec<u32> = numbers
        .iter()
        .filter_map(|number| u32::try_from(*number).ok())
        .collect();
    numbers.sort_unstable();
    let ranges: Vec<_> = numbers
        .chunk_by(|one, next| next - one <= 1)
        .filter_map(|range| Some((*range.first()?, *range.last()?)))
        .collect();
    let mut program = vec![plain(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER)];
    program.extend(search(&ranges, listed, otherwise));
    program
}

/// Whether the number that was loaded is in one of these ranges, of which the lowest is first.
fn search(ranges: &[(u32, u32)], listed: u32, otherwise: u32) -> Vec<sock_filter> {
    let end = |value| plain(libc::BPF_RET | libc::BPF_K, value);
    match ranges {
        [] => vec![end(otherwise)],
        [(first, last)] => vec![
            jump(libc::BPF_JGE, *first, 0, 2),
            jump(libc::BPF_JGT, *last, 1, 0),
            end(listed),
            end(otherwise),
        ],
        _ => {
            let (below, above) = ranges.split_at(ranges.len() / 2);
            let (lowest, _) = above[0];
            let below = search(below, listed, otherwise);
            // A conditional jump reaches 255 instructions, the other one all there may be.
            let distance = u32::try_from(below.len()).unwrap_or(u32::MAX);
            let mut program = vec![
                jump(libc::BPF_JGE, lowest, 0, 1),
                plain(libc::BPF_JMP | libc::BPF_JA, distance),
            ];
            program.extend(below);
            program.extend(search(above, listed, otherwise));
            program
        }
    }
}

fn plain(code: u32, k: u32) -> sock_filter {
    instruction(code, 0, 0, k)
}

/// Compares the number with `k`, and leaves out so many instructions if it is so, or if not.
fn jump(comparison: u32, k: u32, is_so: u8, is_not: u8) -> sock_filter {
    let code = libc::BPF_JMP | comparison | libc::BPF_K;
    instruction(code, is_so, is_not, k)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    // All codes are of 16 bits.
    let code = u16::try_from(code).unwrap_or_default();
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What the kernel would do: its answer, and the number of instructions to it.
    fn run(program: &[sock_filter], number: u32) -> (u32, usize) {
        let mut at = 0;
        for steps in 1..=program.len() {
            let sock_filter { code, jt, jf, k } = &program[at];
            let code = u32::from(*code);
            at += 1;
            let mut branch = |is_so: bool| at += usize::from(if is_so { *jt } else { *jf });
            match code & 0x07 {
                libc::BPF_LD => assert_eq!(*k, NUMBER),
                libc::BPF_RET => return (*k, steps),
                _ => match code & 0xf0 {
                    libc::BPF_JGE => branch(number >= *k),
                    libc::BPF_JGT => branch(number > *k),
                    libc::BPF_JA => at += *k as usize,
                    other => panic!("instruction {other}"),
                },
            }
        }
        panic!("it does not end")
    }

    proptest! {
        #[test]
        fn what_is_listed_is_found_and_nothing_else(numbers: BTreeSet<u16>, other: u32) {
            let list: Vec<_> = numbers.iter().rev().map(|number| libc::c_long::from(*number)).collect();
            let program = program(&list, 1, 2);
            for number in numbers.iter().flat_map(|number| {
                let number = u32::from(*number);
                [number.saturating_sub(1), number, number + 1]
            }).chain([0, other, u32::MAX]) {
                let listed = u16::try_from(number).is_ok_and(|number| numbers.contains(&number));
                prop_assert_eq!(run(&program, number).0, if listed { 1 } else { 2 });
            }
        }
    }

    #[test]
    fn every_call_takes_a_few_steps() {
        let program = program(super::super::ALLOWED, 1, 2);
        for number in 0..1000 {
            let (_, steps) = run(&program, number);
            assert!(steps < 25, "{number} takes {steps}");
        }
    }
}
