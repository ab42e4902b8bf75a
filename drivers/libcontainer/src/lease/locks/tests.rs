use std::{
    env,
    fs::File,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    thread,
};

use super::*;

/// Set for this test program when it runs as one of several processes that take leases.
const TAKER: &str = "HSUP_TEST_TAKER";

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn leases(&self, uids: (u32, u32), block: &str) -> Leases {
        let uids = UidRange::parse(Some(&uids.0.to_string()), Some(&uids.1.to_string())).unwrap();
        let pool = Pool::new(Some(block), uids).unwrap();
        Leases::open(self.dir.path(), uids, pool).unwrap()
    }

    fn owner(&self, name: &str) -> PathBuf {
        let owner = self.dir.path().join("run").join(name);
        fs::create_dir_all(&owner).unwrap();
        owner
    }

    fn is_locked(&self, lock: &str) -> bool {
        self.dir.path().join(lock).exists()
    }
}

#[test]
fn a_lease_is_two_files_with_the_owner_in_them() {
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 11000), "172.16.0.28/12");
    let owner = fixture.owner("web.1");
    let lease = leases.take(&owner, |_| true).unwrap();
    assert_eq!(
        (lease.uid, lease.subnet.to_string().as_str()),
        (3000, "172.16.0.28/30")
    );
    for lock in ["uids/3000", "subnets/172.16.0.28"] {
        let content = fs::read_to_string(fixture.dir.path().join(lock)).unwrap();
        assert_eq!(Path::new(&content), owner);
    }
    let kept: Lease = serde_json::from_str(&serde_json::to_string(&lease).unwrap()).unwrap();
    assert_eq!(kept, lease);
}

#[test]
fn the_second_dyno_in_a_block_of_one_waits_for_the_first() {
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 11000), "192.168.200.0/30");
    let (first, second) = (fixture.owner("web.1"), fixture.owner("web.2"));
    let lease = leases.take(&first, |_| true).unwrap();
    assert_eq!(lease.subnet.host().to_string(), "192.168.200.2");

    let error = leases.take(&second, |_| true).unwrap_err();
    assert!(error.is_exhausted());
    assert_eq!(
        error.to_string(),
        "no subnet left: of the 1 in 192.168.200.0/30, 1 are in use by dynos and 0 by the host itself; stop a dyno, or set LIBCONTAINER_DYNO_SUBNET to a larger block"
    );
    assert!(!fixture.is_locked("uids/3001"), "the uid stayed locked");

    Leases::free(fixture.dir.path(), &lease, &first).unwrap();
    let again = leases.take(&second, |_| true).unwrap();
    assert_eq!((again.uid, again.subnet), (3001, lease.subnet));
}

#[test]
fn uids_run_out_and_come_back_and_the_next_one_is_given() {
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 3002), "172.16.0.28/12");
    let owner = fixture.owner("web.1");
    let first = leases.take(&owner, |_| true).unwrap();
    Leases::free(fixture.dir.path(), &first, &owner).unwrap();
    // Another driver goes on where the first one was.
    let other = fixture.leases((3000, 3002), "172.16.0.28/12");
    let uids: Vec<_> = (0..3)
        .map(|_| other.take(&owner, |_| true).unwrap().uid)
        .collect();
    assert_eq!(uids, [3001, 3002, 3000]);
    let error = leases.take(&owner, |_| true).unwrap_err();
    assert!(error.is_exhausted());
    assert!(
        error
            .to_string()
            .contains("all 3 from 3000 to 3002 are in use, 0 of them by users of the host;"),
        "{error}"
    );
}

#[test]
fn a_subnet_of_the_host_is_passed_over() {
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 11000), "10.1.0.0/28");
    let owner = fixture.owner("web.1");
    let hosts = |subnet: Subnet| subnet.to_string() != "10.1.0.0/30";
    let lease = leases.take(&owner, hosts).unwrap();
    assert_eq!(lease.subnet.to_string(), "10.1.0.4/30");
    let error = leases.take(&owner, |_| false).unwrap_err().to_string();
    assert!(
        error.contains("1 are in use by dynos and 3 by the host"),
        "{error}"
    );
}

#[test]
fn only_the_owner_frees_and_twice_is_once() {
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 3000), "10.1.0.0/30");
    let (first, second) = (fixture.owner("web.1"), fixture.owner("web.2"));
    let lease = leases.take(&first, |_| true).unwrap();
    Leases::free(fixture.dir.path(), &lease, &second).unwrap();
    assert!(
        leases.take(&second, |_| true).is_err(),
        "freed by a stranger"
    );
    Leases::free(fixture.dir.path(), &lease, &first).unwrap();
    leases.take(&second, |_| true).unwrap();
    Leases::free(fixture.dir.path(), &lease, &first).unwrap();
    assert!(fixture.is_locked("uids/3000") && fixture.is_locked("subnets/10.1.0.0"));
}

#[test]
fn the_last_of_a_pool_is_told_so_and_other_pools_do_not_count() {
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 3001), "10.1.0.0/29");
    let others = fixture.leases((4000, 4001), "10.2.0.0/29");
    let owner = fixture.owner("web.1");
    let [one, two] = [(); 2].map(|()| leases.take(&owner, |_| true).unwrap());
    let other = others.take(&owner, |_| true).unwrap();
    let free = |lease| Leases::free_and(fixture.dir.path(), lease, &owner, || "last").unwrap();
    let if_none = || Leases::if_none(fixture.dir.path(), one.pool, || ()).unwrap();
    assert_eq!(if_none(), None);
    let unless = |subnet| Leases::unless_leased(fixture.dir.path(), subnet, || ()).unwrap();
    assert_eq!(unless(two.subnet), None);
    let if_any = || Leases::if_any(fixture.dir.path(), one.pool, || ()).unwrap();
    assert_eq!(if_any(), Some(()));
    assert_eq!(free(&two), None);
    assert_eq!(free(&one), Some("last"));
    assert_eq!(if_none(), Some(()));
    assert_eq!(unless(two.subnet), Some(()));
    assert_eq!(if_any(), None);
    assert_eq!(free(&other), Some("last"));
}

#[test]
fn what_a_crash_left_behind_is_freed_and_nothing_else() {
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 3010), "10.1.0.0/24");
    let (gone, lives) = (fixture.owner("gone"), fixture.owner("lives"));
    let stale = leases.take(&gone, |_| true).unwrap();
    let kept = leases.take(&lives, |_| true).unwrap();
    fs::remove_dir(&gone).unwrap();
    // Crashed after one file, while it wrote one, and between the two.
    File::create(fixture.dir.path().join("uids/3005")).unwrap();
    File::create(fixture.dir.path().join("subnets/10.1.0.200")).unwrap();
    assert!(lock(&fixture.dir.path().join("uids/3006"), &gone).unwrap());
    // Not ours to remove.
    File::create(fixture.dir.path().join("uids/README")).unwrap();

    assert_eq!(leases.free_stale().unwrap(), [stale.uid, 3005, 3006]);
    assert!(!fixture.is_locked("subnets/10.1.0.200"));
    assert!(!fixture.is_locked("subnets/10.1.0.0"));
    assert!(fixture.is_locked("uids/README"));
    assert!(fixture.is_locked(&format!("uids/{}", kept.uid)));
    assert!(fixture.is_locked("subnets/10.1.0.4"));
    assert_eq!(leases.free_stale().unwrap(), [0u32; 0]);
}

#[test]
fn a_lock_without_an_owner_is_kept_while_a_process_has_the_uid() {
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 3010), "10.1.0.0/24");
    let me = nix::unistd::Uid::effective().as_raw();
    File::create(uid_path(fixture.dir.path(), me)).unwrap();
    assert_eq!(leases.free_stale().unwrap(), [0u32; 0]);
    assert!(uid_path(fixture.dir.path(), me).exists());
}

#[test]
fn threads_never_get_the_same() {
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 3399), "172.16.0.28/12");
    let owner = fixture.owner("web.1");
    let taken: Vec<Lease> = thread::scope(|scope| {
        let takers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| take_many(&leases, &owner, fixture.dir.path(), 50)))
            .collect();
        takers
            .into_iter()
            .flat_map(|taker| taker.join().unwrap())
            .collect()
    });
    assert_eq!(taken.len(), 400);
    assert!(leases.take(&owner, |_| true).unwrap_err().is_exhausted());
    assert_distinct(&taken);
}

#[test]
fn processes_never_get_the_same() {
    if let Ok(work_dir) = env::var(TAKER) {
        return take_as_process(Path::new(&work_dir));
    }
    let fixture = Fixture::new();
    let leases = fixture.leases((3000, 3199), "172.16.0.28/12");
    fixture.owner("web.1");
    #[expect(
        clippy::disallowed_methods,
        reason = "this test program itself, not a dyno"
    )]
    let takers: Vec<_> = (0..4)
        .map(|_| {
            Command::new(env::current_exe().unwrap())
                .args([
                    "--exact",
                    "--nocapture",
                    "lease::locks::tests::processes_never_get_the_same",
                ])
                .env(TAKER, fixture.dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut taken = Vec::new();
    for taker in takers {
        let output = taker.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let ours = text
            .lines()
            .filter_map(|line| line.find('{').map(|at| &line[at..]));
        taken.extend(ours.map(|line| serde_json::from_str::<Lease>(line).unwrap()));
    }
    assert_eq!(taken.len(), 200);
    assert!(
        leases
            .take(&fixture.owner("web.1"), |_| true)
            .unwrap_err()
            .is_exhausted()
    );
    assert_distinct(&taken);
}

fn take_as_process(work_dir: &Path) {
    let uids = UidRange::parse(Some("3000"), Some("3199")).unwrap();
    let pool = Pool::new(None, uids).unwrap();
    let leases = Leases::open(work_dir, uids, pool).unwrap();
    let owner = work_dir.join("run").join("web.1");
    let mut out = io::stdout().lock();
    for lease in take_many(&leases, &owner, work_dir, 50) {
        writeln!(out, "\n{}", serde_json::to_string(&lease).unwrap()).unwrap();
    }
}

/// Takes `count`; frees and takes again now and then, as dynos do.
fn take_many(leases: &Leases, owner: &Path, work_dir: &Path, count: usize) -> Vec<Lease> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(leases.take(owner, |_| true).unwrap());
        if taken.len() % 7 == 0 {
            let back = taken.pop().unwrap();
            Leases::free(work_dir, &back, owner).unwrap();
            taken.push(leases.take(owner, |_| true).unwrap());
        }
    }
    taken
}

fn assert_distinct(leases: &[Lease]) {
    let uids: HashSet<_> = leases.iter().map(|lease| lease.uid).collect();
    let subnets: HashSet<_> = leases.iter().map(|lease| lease.subnet).collect();
    assert_eq!((uids.len(), subnets.len()), (leases.len(), leases.len()));
}

#[test]
#[ignore = "needs root: it starts a process of another user"]
fn who_is_somebody_on_the_host_is_no_dyno() {
    let fixture = Fixture::new();
    // A child who is nobody we know, as a host's user would be.
    let uid = 61_002;
    #[expect(clippy::disallowed_methods, reason = "somebody who is no dyno")]
    let mut sleeper = Command::new("sleep");
    let mut sleeper = sleeper.uid(uid).gid(uid).arg("1000").spawn().unwrap();
    let mut leases = fixture.leases((uid - 2, uid + 1), "10.0.0.0/24");
    let locked = fixture.owner("run.1");
    let first = leases.take(&locked, |_| true).unwrap();
    let strangers = leases.pass_over([uid + 1, 7]).unwrap().clone();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(strangers, [uid, uid + 1].into());
    let second = leases.take(&fixture.owner("run.2"), |_| true).unwrap();
    assert_eq!((first.uid, second.uid), (uid - 2, uid - 1));
    let error = leases.take(&fixture.owner("run.3"), |_| true).unwrap_err();
    assert!(error.is_exhausted(), "{error}");
    let said = "are in use, 2 of them by users of the host;";
    assert!(error.to_string().contains(said), "{error}");
}
