//! The app in a directory, whose releases all have one number: what one is says which it is, also
//! to an hsup that is started again.

use super::{
    comes_to_rest, is_at_rest,
    world::{Luck, World, undriven},
};
use crate::{
    dyno::Key,
    exit::ExitStatus,
    state::ReleaseState::{self, Building, Current, Rejected, RollingOut, Superseded},
};

const ONE: &str = "web: one\nrelease: migrate\n";
const TWO: &str = "web: two\nrelease: migrate\n";

/// What became of the releases, newest first.
fn states(world: &World) -> Vec<ReleaseState> {
    let records = world.actor.history.iter();
    records.map(|record| record.state).collect()
}

/// The release command that runs, and that nothing runs beside it.
fn command_alone(world: &World) -> Key {
    let command = world.actor.release_commands.running.as_ref().unwrap().key;
    let all: Vec<_> = world.actor.dynos.iter().map(|(key, _)| key).collect();
    assert_eq!(all, [command], "{world:?}");
    command
}

fn end_of(world: &World) -> String {
    world.actor.fatal.as_ref().unwrap().to_string()
}

#[test]
fn a_rollout_is_gone_on_with_if_the_directory_still_holds_that_release() {
    let runtime = undriven();
    let _entered = runtime.enter();
    let mut world = World::of_directory("web: one\nworker: one\n");
    comes_to_rest(&mut world).unwrap();
    world.edit("web: two\nworker: two\n");
    world.is_killed();
    world.build(Ok(()));
    assert_eq!(states(&world), [RollingOut, Current]);
    // An old one ends, and a new one takes its place.
    while !world
        .actor
        .dynos
        .iter()
        .any(|(_, live)| live.handle.spec.release_id == 2)
    {
        let old = *world.moving().first().unwrap();
        world.moves(old, Luck::Well);
    }
    for _ in 0..2 {
        world.is_killed();
        assert_eq!(states(&world), [RollingOut, Current]);
        assert_eq!(world.actor.releases.on_trial(), Some(2));
    }
    world.edit("web: three\nworker: three\n");
    world.is_killed();
    assert_eq!(states(&world), [Building, Rejected, Current]);
    comes_to_rest(&mut world).unwrap();
    is_at_rest(&world).unwrap();
    assert_eq!(states(&world), [Current, Rejected, Superseded]);
}

#[test]
fn a_first_release_command_that_outlives_hsup_is_waited_for() {
    let runtime = undriven();
    let _entered = runtime.enter();
    let mut world = World::of_directory(ONE);
    world.build(Ok(()));
    for _ in 0..2 {
        world.is_killed();
        world.build(Ok(()));
        command_alone(&world);
    }
    comes_to_rest(&mut world).unwrap();
    is_at_rest(&world).unwrap();
    assert_eq!(states(&world), [Current]);
}

#[test]
fn a_command_of_a_release_that_ran_before_is_waited_for_and_counts() {
    let runtime = undriven();
    let _entered = runtime.enter();
    for code in [0, 3] {
        let mut world = World::of_directory(ONE);
        comes_to_rest(&mut world).unwrap();
        world.is_started_again();
        world.build(Ok(()));
        command_alone(&world);
        world.is_killed();
        let command = command_alone(&world);
        world.build(Ok(()));
        assert_eq!(command_alone(&world), command);
        world.ends(command, ExitStatus::code(code, 1), true);
        assert_eq!(states(&world), [Current]);
        if code == 0 {
            comes_to_rest(&mut world).unwrap();
            is_at_rest(&world).unwrap();
            continue;
        }
        let expected = "release command failed: Process exited with status 3";
        assert_eq!(end_of(&world), expected);
        // The next start has nothing to take over, and runs it anew.
        world.is_started_again();
        world.build(Ok(()));
        command_alone(&world);
    }
}

#[test]
fn its_end_counts_before_the_directory_is_built_again() {
    let runtime = undriven();
    let _entered = runtime.enter();
    let mut world = World::of_directory(ONE);
    comes_to_rest(&mut world).unwrap();
    world.is_started_again();
    world.build(Ok(()));
    world.is_killed_and(|world| {
        let command = command_alone(world);
        world.ends(command, ExitStatus::code(3, 1), true);
    });
    world.was_built(Ok(()));
    let expected = "release command failed: Process exited with status 3";
    assert_eq!(end_of(&world), expected);
    assert_eq!(world.actor.dynos.len(), 0);
}

#[test]
fn an_older_release_does_not_run_beside_the_command_of_the_one_that_is_there() {
    let runtime = undriven();
    let _entered = runtime.enter();
    for code in [0, 3] {
        let mut world = World::of_directory(ONE);
        comes_to_rest(&mut world).unwrap();
        world.edit(TWO);
        world.is_started_again();
        world.build(Ok(()));
        world.is_killed();
        let command = command_alone(&world);
        world.build(Ok(()));
        assert_eq!(command_alone(&world), command);
        world.ends(command, ExitStatus::code(code, 1), true);
        if code == 0 {
            comes_to_rest(&mut world).unwrap();
            is_at_rest(&world).unwrap();
            assert_eq!(states(&world), [Current, Superseded]);
        } else {
            assert_eq!(states(&world), [Rejected, Current]);
            let expected = "release command failed: Process exited with status 3";
            assert_eq!(end_of(&world), expected);
            assert_eq!(world.actor.dynos.len(), 0);
        }
    }
}

#[test]
fn a_command_of_what_the_directory_no_longer_holds_is_only_waited_for() {
    let runtime = undriven();
    let _entered = runtime.enter();
    let mut world = World::of_directory(ONE);
    world.build(Ok(()));
    world.edit(TWO);
    world.is_killed();
    world.build(Ok(()));
    command_alone(&world);
    assert_eq!(states(&world), [Building, Rejected]);
    comes_to_rest(&mut world).unwrap();
    is_at_rest(&world).unwrap();
    assert_eq!(states(&world), [Current, Rejected]);
}

#[test]
fn a_command_goes_on_beside_the_dynos_that_survived_with_it() {
    let runtime = undriven();
    let _entered = runtime.enter();
    let mut world = World::of_directory("web: one\n");
    comes_to_rest(&mut world).unwrap();
    world.edit(TWO);
    world.is_killed();
    world.build(Ok(()));
    world.is_killed();
    assert_eq!(states(&world), [Building, Current]);
    world.build(Ok(()));
    assert_eq!(world.actor.dynos.len(), 2, "{world:?}");
    assert_eq!(world.actor.releases.on_trial(), None);
    comes_to_rest(&mut world).unwrap();
    is_at_rest(&world).unwrap();
    assert_eq!(states(&world), [Current, Superseded]);
}
