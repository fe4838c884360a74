//! The protocol of leases, owners, fences and cursors, and that of a stream's number of shards, as
//! models that are gone through exhaustively for small sizes. An invariant of a model has a name,
//! which the lines of the code that keep it bear as `// invariant: NAME`.

#[path = "model/group.rs"]
mod group;
#[path = "model/shards.rs"]
mod shards;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::path::Path;
use std::time::Instant;

use group::{
    Broken, ENDS, Group, HOLDER_ACKS, IN_ORDER, NO_EVENT_LOST, NO_FENCED_STORE, ONE_OWNER,
    STORED_ONCE,
};
use shards::{ONE_NUMBER, Shards};
use stateright::{Checker, HasDiscoveries, Model};

const ORDERED: Group = Group {
    ordered: true,
    members: 2,
    events: 2,
    orphans: 0,
    disturbances: None,
    broken: Broken::Nothing,
};

/// How much goes wrong in the larger models; more takes minutes.
fn disturbances() -> Option<u8> {
    Some(std::env::var("AQUEDUCT_DISTURBANCES").map_or(2, |number| number.parse().unwrap()))
}

/// What may be gone through by two threads.
trait Known: Clone + Debug + PartialEq + Hash + Send + Sync + 'static {}
impl<T: Clone + Debug + PartialEq + Hash + Send + Sync + 'static> Known for T {}

/// Goes through all states.
fn holds(model: impl Model<State: Known, Action: Known> + Debug + Send + Sync + 'static) {
    let (name, since) = (format!("{model:?}"), Instant::now());
    let checker = model.checker().threads(2).spawn_bfs().join();
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    println!("{name}: {states} states, {steps} steps, {:.1} s", since.elapsed().as_secs_f64());
    checker.assert_properties();
    assert!(states > 100, "a model of {states} states is none");
}

/// Finds a way to what the model must not come to.
fn fails(
    model: impl Model<State: Known, Action: Known> + Send + Sync + 'static,
    broken: impl Debug,
    invariant: &'static str,
) {
    let all = HasDiscoveries::AllOf([invariant].into());
    let checker = model.checker().threads(2).finish_when(all).spawn_bfs().join();
    let found = checker.discovery(invariant);
    let found = found.unwrap_or_else(|| panic!("{broken:?} does not break {invariant}"));
    println!("{broken:?} breaks {invariant}: {:?}", found.into_actions());
}

#[test]
fn an_ordered_group_keeps_its_invariants_whatever_goes_wrong() {
    holds(ORDERED);
}

#[test]
fn an_ordered_group_keeps_them_when_what_was_given_up_is_stored_all_the_same() {
    holds(Group { events: 3, orphans: 1, disturbances: disturbances(), ..ORDERED });
}

#[test]
fn a_group_without_order_keeps_them() {
    holds(Group { ordered: false, orphans: 1, disturbances: disturbances(), ..ORDERED });
}

#[test]
fn what_is_wrong_with_an_ordered_group_is_found() {
    let group = Group { events: 3, orphans: 1, disturbances: Some(3), ..ORDERED };
    for (broken, invariant) in [
        (Broken::NoFence, NO_FENCED_STORE),
        (Broken::EpochStays, NO_FENCED_STORE),
        (Broken::ClaimLeavesLeases, IN_ORDER),
        (Broken::ClaimLeavesLeases, ONE_OWNER),
        (Broken::AckWithoutToken, HOLDER_ACKS),
        (Broken::NoIds, STORED_ONCE),
        (Broken::AckFirst, NO_EVENT_LOST),
    ] {
        fails(Group { broken, ..group.clone() }, broken, invariant);
    }
}

#[test]
fn what_is_wrong_with_a_group_without_order_is_found() {
    let group = Group { ordered: false, disturbances: Some(3), ..ORDERED };
    for (broken, invariant) in [
        (Broken::CursorAtLastAck, NO_EVENT_LOST),
        (Broken::AckFirst, NO_EVENT_LOST),
        (Broken::AckWithoutToken, HOLDER_ACKS),
        (Broken::NoIds, STORED_ONCE),
        (Broken::NoReclaim, ENDS),
    ] {
        fails(Group { broken, ..group.clone() }, broken, invariant);
    }
}

#[test]
fn a_key_is_in_one_shard_whatever_number_programs_come_with() {
    let events = 12;
    holds(Shards { events, broken: shards::Broken::Nothing });
    for broken in [shards::Broken::AppendAnyhow, shards::Broken::ChangeAnyhow] {
        fails(Shards { events, broken }, broken, ONE_NUMBER);
    }
}

/// The names in the code's comments.
fn named(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            named(&entry, names);
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&entry).unwrap()).into_owned();
            let named = text.lines().filter_map(|line| line.split_once(" invariant: "));
            let named = named.flat_map(|(_, names)| names.split(", "));
            names.extend(named.map(|name| name.trim().to_owned()));
        }
    }
}

#[test]
fn the_code_names_the_invariants_where_it_keeps_them() {
    let mut found = BTreeSet::new();
    named(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let known = [
        NO_EVENT_LOST,
        STORED_ONCE,
        IN_ORDER,
        NO_FENCED_STORE,
        HOLDER_ACKS,
        ONE_OWNER,
        ENDS,
        ONE_NUMBER,
    ];
    let known: BTreeSet<String> = known.into_iter().map(str::to_owned).collect();
    assert_eq!(found, known, "in the comments, and in the model");
}
