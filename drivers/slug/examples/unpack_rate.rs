//! How fast a slug is added, and then taken: `unpack_rate SLUG.tgz STORE UID`, as root.
//!
//! Run it beside `tar -xzf` of the same file and a sync: that is what there is to compare with.

#![expect(clippy::print_stdout, reason = "it is a program for people")]

use std::{error::Error, path::Path, time::Duration};

use hsup_slug::{Fetch, Owner, Peer, Settings, Silent, Store};
use tokio::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(code) = hsup_slug::role(std::env::args_os()) {
        std::process::exit(code);
    }
    let mut args = std::env::args().skip(1);
    let (Some(slug), Some(store), Some(uid)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: unpack_rate /absolute/SLUG.tgz STORE UID".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(&slug, Path::new(&store), uid.parse()?))
}

async fn measure(slug: &str, store: &Path, uid: u32) -> Result<(), Box<dyn Error>> {
    let store = Store::open(store, Settings::new(uid))?;
    let size = std::fs::metadata(slug)?.len();
    let fetch = Fetch::new(format!("file://{slug}"), None, Peer::of_uid(0, 0));
    let owner = Owner::new(0, "app")?;
    for what in ["unpacked", "found"] {
        let begin = Instant::now();
        let id = store.add(&fetch, &owner, &Silent).await?;
        rate(what, size, begin.elapsed());
        let begin = Instant::now();
        let slug = store.get(0, &id)?.ok_or("it is not there")?;
        println!("taken in {:?}", begin.elapsed());
        drop(slug);
    }
    Ok(())
}

fn rate(what: &str, size: u64, took: Duration) {
    let megabytes = Duration::from_secs(size).as_secs_f64() / 1e6;
    println!(
        "{what} in {took:?}: {:.0} MB/s",
        megabytes / took.as_secs_f64()
    );
}
