//! The chapters, in the order they are run.
//!
//! `whole run` looks back at what the others saw, so it stays last.

mod attach;
mod binds;
mod build;
mod build_key;
mod concurrency;
mod driver_process;
mod durability;
mod first_process;
mod identity;
mod ip_info;
mod limits;
mod list_remove;
mod logs;
mod malformed;
mod own_network;
mod privilege;
mod signal;
mod start;
mod start_refused;
mod stats;
mod stdio;
mod stop;
mod stopping;
mod wait;
mod whole_run;

use super::case::Case;

pub(crate) use self::{durability::DURABILITY, privilege::PRIVILEGE};

/// Every case of the suite, in order.
pub fn all() -> Vec<&'static Case> {
    let chapters: [&[Case]; 25] = [
        identity::CASES,
        build::CASES,
        build_key::CASES,
        start::CASES,
        start_refused::CASES,
        first_process::CASES,
        stop::CASES,
        stopping::CASES,
        wait::CASES,
        list_remove::CASES,
        ip_info::CASES,
        stdio::CASES,
        logs::CASES,
        concurrency::CASES,
        signal::CASES,
        stats::CASES,
        attach::CASES,
        malformed::CASES,
        own_network::CASES,
        binds::CASES,
        limits::CASES,
        driver_process::CASES,
        durability::CASES,
        privilege::CASES,
        whole_run::CASES,
    ];
    chapters.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_has_a_title_of_its_own_and_cites_a_rule() {
        let mut titles = BTreeSet::new();
        for case in all() {
            assert!(titles.insert(case.title()), "twice: {}", case.title());
            let cites = case.rule.contains('§') || case.rule.starts_with("architecture");
            assert!(cites, "no rule: {}", case.title());
        }
    }
}
