//! A standard output that takes nothing, or too little.

use super::*;

/// The numbers that are in `lines`, and those that are said to be missing where they stand.
fn numbers_and_gaps(lines: &str) -> (u64, u64) {
    let (mut shown, mut missing) = (0, 0);
    for line in lines.lines() {
        if let Some(rest) = line.strip_prefix("hsup: ") {
            let (count, rest) = rest.split_once(' ').unwrap();
            assert!(
                rest.ends_with("not written here: standard output took too little"),
                "{line}"
            );
            missing += count.parse::<u64>().unwrap();
        } else {
            let (_, number) = line.split_once(" | ").expect(line);
            assert_eq!(
                number.parse::<u64>().unwrap(),
                shown + missing,
                "in its place"
            );
            shown += 1;
        }
    }
    (shown, missing)
}

/// Has a dyno write so many numbered lines, which are more than all that waits for a standard
/// output that takes nothing.
async fn write_past(mut web: TestDyno, total: u64) -> TestDyno {
    let writing = tokio::task::spawn_blocking(move || {
        for first in (0..total).step_by(1000) {
            let lines: Vec<_> = (first..first + 1000)
                .map(|n| format!("{n:099}\n"))
                .collect();
            web.say(lines.concat());
        }
        web
    });
    let web = timeout(PATIENCE, writing).await;
    web.expect("the dyno is held up").unwrap()
}

const STUCK_THEN: u64 = 100_000;

#[tokio::test]
async fn a_standard_output_that_is_stuck_holds_up_nobody_and_says_what_it_missed() {
    let mut rig = Rig::with(Format::Prefixed, |settings| {
        settings.terminal.as_mut().unwrap().patience = Duration::ZERO;
    });
    let web = write_past(rig.add("web.1"), STUCK_THEN).await;
    until("the last line", || {
        let last = rig.logs.tail(&Filter::dyno("web.1"), 1);
        texts(&last) == [format!("{:099}", STUCK_THEN - 1)]
    })
    .await;
    until("somebody is told", || {
        texts(&rig.logs.tail(&Filter::dyno(SYSTEM), 9)) == [terminal::STUCK]
    })
    .await;

    // It is read at last: every line is there, or counted in its place.
    let stdout = read_all(rig.stdout.take().unwrap());
    rig.logs.finish(&web.id).await;
    until("the count is told", || {
        rig.logs.tail(&Filter::dyno(SYSTEM), 9).len() == 2
    })
    .await;
    let told = texts(&rig.logs.tail(&Filter::dyno(SYSTEM), 1));
    end(rig.logs).await;
    let (shown, missing) = numbers_and_gaps(&stdout.join().unwrap());
    assert_eq!(shown + missing, STUCK_THEN);
    assert!(missing > 0, "ten megabytes have no room");
    assert!(shown > 30_000, "four have: {shown}");
    assert_eq!(
        told,
        [format!(
            "Standard output takes lines again; {missing} lines were not written"
        )]
    );
}

#[tokio::test]
async fn beside_a_drain_nobody_waits_for_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.json");
    let target = format!("json://{}", path.display());
    let mut rig = Rig::with(Format::Prefixed, |settings| {
        settings.drains = vec![DrainTarget::parse(&target).unwrap()];
    });
    let web = write_past(rig.add("web.1"), STUCK_THEN).await;
    until("every line at the drain", || {
        let counts = rig.logs.drains_status()[0].counts;
        counts.sent + counts.dropped >= STUCK_THEN && counts.queued == 0
    })
    .await;
    let stdout = read_all(rig.stdout.take().unwrap());
    rig.logs.finish(&web.id).await;
    end(rig.logs).await;
    let (shown, missing) = numbers_and_gaps(&stdout.join().unwrap());
    assert_eq!(shown + missing, STUCK_THEN);
    assert!(missing > 0);
}

#[tokio::test]
async fn a_drain_that_comes_frees_those_who_wait_for_standard_output() {
    let mut rig = Rig::new(Format::Prefixed);
    let web = rig.add("web.1");
    let writing = tokio::spawn(write_past(web, STUCK_THEN));
    until("the dyno is held up", || {
        let stdout = rig.logs.shared().stdout.as_ref().unwrap();
        stdout.unwritten().0 >= outlet::HOLD_BYTES
    })
    .await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("syslog://{}", listener.local_addr().unwrap());
    rig.logs.drain_to(Some(&LogTarget::new(&url).unwrap()));
    let web = writing.await.unwrap();
    let stdout = read_all(rig.stdout.take().unwrap());
    rig.logs.finish(&web.id).await;
    end(rig.logs).await;
    let (shown, missing) = numbers_and_gaps(&stdout.join().unwrap());
    assert_eq!(shown + missing, STUCK_THEN);
}

#[tokio::test]
async fn in_json_a_gap_is_an_object_too() {
    let mut rig = Rig::with(Format::Json, |settings| {
        settings.terminal.as_mut().unwrap().patience = Duration::ZERO;
    });
    let web = write_past(rig.add("web.1"), STUCK_THEN).await;
    until("somebody is told", || {
        !rig.logs.tail(&Filter::dyno(SYSTEM), 9).is_empty()
    })
    .await;
    let stdout = read_all(rig.stdout.take().unwrap());
    rig.logs.finish(&web.id).await;
    end(rig.logs).await;
    let stdout = stdout.join().unwrap();
    let objects = stdout.lines().map(|line| {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        (
            object["dyno"].as_str().unwrap().to_owned(),
            object["line"].as_str().unwrap().to_owned(),
        )
    });
    let gaps: Vec<String> = objects
        .filter(|(dyno, line)| dyno == SYSTEM && line.contains("not written here"))
        .map(|(_, line)| line)
        .collect();
    assert!(!gaps.is_empty(), "{} bytes", stdout.len());
}

#[tokio::test]
async fn what_a_stuck_standard_output_never_took_is_said_to_the_last_line() {
    let mut rig = Rig::with(Format::Prefixed, |settings| {
        settings.terminal.as_mut().unwrap().patience = Duration::ZERO;
    });
    let stdout = rig.stdout.take().unwrap();
    let in_pipe = fcntl(&stdout, FcntlArg::F_GETPIPE_SZ).unwrap();
    let web = write_past(rig.add("web.1"), STUCK_THEN).await;
    rig.logs.finish(&web.id).await;
    let outcome = rig.logs.clone().shutdown(std::future::ready(())).await;
    assert_eq!(outcome, ShutdownOutcome::CutOff);
    let stderr = io::read_to_string(rig.stderr.take().unwrap()).unwrap();
    let (_, said) = stderr.split_once("At least ").expect(&stderr);
    let numbers: Vec<u64> = said
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [bytes, lines] = numbers[..] else {
        panic!("{said}");
    };
    let line = "web.1  | ".len() as u64 + 100;
    let shown = bytes + u64::try_from(in_pipe).unwrap();
    assert_eq!(shown % line, 0, "{said}");
    assert_eq!(shown / line + lines, STUCK_THEN, "{said}");
    // Frees the thread that was left behind.
    drop(stdout);
}
