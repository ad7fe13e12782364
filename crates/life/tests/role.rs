//! A node's role under every order of wishes, group changes, failures and crashes.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use shoal_life::role::{Doing, Effect, Event, Has, Role, Wish};
use shoal_model::spec::node::NodeRole;

/// What happens next, as dice: the world says what of it is possible.
#[derive(Clone, Copy, Debug)]
enum Dice {
    Promote,
    Demote,
    /// The leader takes the node's number out of the group, or notes that it is out.
    GroupStep,
    /// The leader says what the node is to be.
    Tell,
    /// An earlier leader says what was true before.
    TellStale(Wish),
    /// The node is removed altogether.
    RemoveNode,
    Succeed,
    Fail,
    /// It was done, but nobody heard.
    Lost,
    Interrupt,
    Crash,
}

fn dice() -> impl Strategy<Value = Dice> {
    let stale = prop_oneof![
        Just(Wish::Worker),
        Just(Wish::Manager(None)),
        (1_u64..9).prop_map(|n| Wish::Manager(Some(n)))
    ];
    prop_oneof![
        2 => Just(Dice::Promote),
        2 => Just(Dice::Demote),
        4 => Just(Dice::GroupStep),
        4 => Just(Dice::Tell),
        1 => stale.prop_map(Dice::TellStale),
        10 => Just(Dice::Succeed),
        2 => Just(Dice::Fail),
        1 => Just(Dice::Lost),
        1 => Just(Dice::Interrupt),
        1 => Just(Dice::Crash),
        1 => Just(Dice::RemoveNode),
    ]
}

/// The node's record.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Record {
    Worker,
    Opening(u64),
    Manager,
}

#[derive(Debug)]
struct World {
    role: Role,
    under_way: Option<Effect>,
    // The leader's state.
    wanted: NodeRole,
    number: Option<u64>,
    in_group: bool,
    last: u64,
    is_member: bool,
    // The node's disk.
    certificate: NodeRole,
    record: Record,
    store: Option<u64>,
    // What a store may have been asked.
    served: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    runs: Option<u64>,
}

impl World {
    fn new() -> Self {
        let (role, effect) = Role::begin(Has::Nothing, NodeRole::Worker);
        assert_eq!(effect, None);
        Self {
            role,
            under_way: None,
            wanted: NodeRole::Worker,
            number: None,
            in_group: false,
            last: 0,
            is_member: true,
            certificate: NodeRole::Worker,
            record: Record::Worker,
            store: None,
            served: BTreeSet::new(),
            gone: BTreeSet::new(),
            runs: None,
        }
    }

    fn give(&mut self, event: Event) {
        let (role, effect) = self.role.step(event);
        self.role = role;
        if let Some(effect) = effect {
            assert_eq!(self.under_way, None, "two effects at once");
            self.under_way = Some(effect);
        }
    }

    fn wish(&self) -> Option<Wish> {
        match (self.wanted, self.number) {
            (NodeRole::Manager, number) => Some(Wish::Manager(number)),
            (NodeRole::Worker, None) => Some(Wish::Worker),
            // On its way out of the group.
            (NodeRole::Worker, Some(_)) => None,
        }
    }

    fn tell(&mut self) {
        if !self.is_member {
            return self.give(Event::Removed);
        }
        if let Some(wish) = self.wish() {
            self.give(Event::Told(wish));
        }
    }

    /// The leader's next step for the group.
    fn group_step(&mut self) {
        match (self.wanted, self.number) {
            (NodeRole::Manager, Some(_)) => self.in_group = true,
            (NodeRole::Worker, Some(_)) if self.in_group => self.in_group = false,
            (NodeRole::Worker, Some(_)) => self.number = None,
            (_, None) => {}
        }
    }

    /// Carries the effect out; the event that says so.
    fn done(&mut self, effect: Effect) -> Event {
        match effect {
            Effect::Certify(_) if !self.is_member => Event::CertifyFailed,
            Effect::Certify(asked) => {
                if asked == NodeRole::Manager
                    && self.wanted == NodeRole::Manager
                    && self.number.is_none()
                {
                    self.last += 1;
                    self.number = Some(self.last);
                }
                let given =
                    if self.number.is_some() { NodeRole::Manager } else { NodeRole::Worker };
                self.certificate = given;
                Event::Certified(given, self.number)
            }
            Effect::Open(number) => {
                self.record = Record::Opening(number);
                assert!(!self.gone.contains(&number), "an empty store for a used number");
                assert!(
                    self.store.is_none_or(|known| known == number),
                    "the store of another number is there"
                );
                self.store = Some(number);
                self.record = Record::Manager;
                self.served.insert(number);
                self.runs = Some(number);
                Event::Opened
            }
            Effect::Close => {
                self.runs = None;
                self.record = Record::Worker;
                Event::Closed
            }
            Effect::Sweep => {
                if let Some(number) = self.store.take()
                    && self.served.contains(&number)
                {
                    assert!(
                        !self.is_member || self.number != Some(number),
                        "the store of a manager in office was removed"
                    );
                    self.gone.insert(number);
                }
                Event::Swept
            }
            Effect::Wait => Event::Retry,
        }
    }

    fn failed(effect: Effect) -> Event {
        match effect {
            Effect::Certify(_) => Event::CertifyFailed,
            Effect::Open(_) => Event::OpenFailed,
            Effect::Close => Event::CloseFailed,
            Effect::Sweep => Event::SweepFailed,
            Effect::Wait => Event::Retry,
        }
    }

    /// What a daemon finds that starts again.
    fn crash(&mut self) {
        self.runs = None;
        let has = match (self.record, self.certificate) {
            (Record::Worker, _) if self.store.is_some() => Has::Leftovers,
            (Record::Worker, _) => Has::Nothing,
            // Its certificate says that it is out.
            (_, NodeRole::Worker) => {
                self.record = Record::Worker;
                Has::Leftovers
            }
            (Record::Opening(number), _) => Has::Number(number),
            (Record::Manager, _) => {
                self.runs = self.store;
                Has::Manager(self.store.unwrap())
            }
        };
        let (role, effect) = Role::begin(has, self.certificate);
        self.role = role;
        self.under_way = effect;
    }

    fn roll(&mut self, dice: Dice) {
        match dice {
            Dice::Promote => self.wanted = NodeRole::Manager,
            Dice::Demote => self.wanted = NodeRole::Worker,
            Dice::GroupStep => self.group_step(),
            Dice::Tell => self.tell(),
            Dice::TellStale(wish) => self.give(Event::Told(wish)),
            Dice::RemoveNode => {
                self.is_member = false;
                self.in_group = false;
            }
            Dice::Succeed => {
                if let Some(effect) = self.under_way.take() {
                    let event = self.done(effect);
                    self.give(event);
                }
            }
            Dice::Fail => {
                if let Some(effect) = self.under_way.take() {
                    self.give(Self::failed(effect));
                }
            }
            Dice::Lost => {
                // An answer that is lost leaves the certificate unwritten.
                if let Some(effect @ Effect::Certify(_)) =
                    self.under_way.take_if(|e| matches!(e, Effect::Certify(_)))
                {
                    let before = self.certificate;
                    let _ = self.done(effect);
                    self.certificate = before;
                    self.give(Event::CertifyFailed);
                }
            }
            Dice::Interrupt => {
                if !self.role.holds_store() {
                    self.under_way = None;
                    self.give(Event::Interrupted);
                }
            }
            Dice::Crash => self.crash(),
        }
        self.check();
    }

    fn check(&self) {
        assert_eq!(self.under_way.is_some(), !self.role.is_settled(), "{self:?}");
        if let Has::Manager(number) = self.role.has() {
            assert_eq!(self.runs, Some(number), "{self:?}");
        }
        if self.role.doing() == Doing::Nothing && self.role.has() == Has::Nothing {
            assert_eq!(self.store, None, "{self:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_node_becomes_what_it_is_to_be(rolls in prop::collection::vec(dice(), 0..120)) {
        let mut world = World::new();
        for dice in rolls {
            world.roll(dice);
        }
        // From here on everything succeeds, and the leader says what is so.
        for _ in 0..40 {
            for dice in [Dice::Tell, Dice::Succeed, Dice::GroupStep] {
                world.roll(dice);
            }
        }
        if !world.is_member {
            prop_assert_eq!(world.runs, None, "a removed node still manages: {:?}", world);
            prop_assert_eq!(world.store, None, "{:?}", world);
            return Ok(());
        }
        prop_assert!(world.role.is_settled(), "{:?}", world);
        prop_assert_eq!(world.certificate, world.wanted, "{:?}", world);
        match world.wanted {
            NodeRole::Manager => {
                prop_assert!(world.number.is_some());
                prop_assert_eq!(world.runs, world.number, "{:?}", world);
                prop_assert_eq!(world.record, Record::Manager);
            }
            NodeRole::Worker => {
                prop_assert_eq!(world.runs, None);
                prop_assert_eq!(world.store, None, "{:?}", world);
                prop_assert_eq!(world.record, Record::Worker);
            }
        }
    }
}

#[test]
fn a_word_alone_ends_no_manager() {
    let (role, effect) = Role::begin(Has::Manager(7), NodeRole::Manager);
    assert_eq!(effect, None);
    let (role, effect) = role.step(Event::Told(Wish::Worker));
    assert_eq!(effect, Some(Effect::Certify(NodeRole::Worker)));
    // The leader that gives the certificate knows better.
    let (role, effect) = role.step(Event::Certified(NodeRole::Manager, Some(7)));
    assert_eq!(effect, None);
    assert_eq!(role.has(), Has::Manager(7));
    let (role, _) = role.step(Event::Told(Wish::Manager(None)));
    let (role, effect) = role.step(Event::Certified(NodeRole::Worker, None));
    assert_eq!(effect, Some(Effect::Close));
    assert_eq!(role.doing(), Doing::Closing);
}
