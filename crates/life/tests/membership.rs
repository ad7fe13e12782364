//! A membership under every order of commands, outcomes and crashes.

#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;
use shoal_life::membership::{
    Consent, Effect, Event, Leftovers, Membership, Outcome, Refusal, Stage,
};

/// What happens next, as dice: the model says what of it is possible.
#[derive(Clone, Copy, Debug)]
enum Dice {
    Succeed(usize),
    Fail(usize),
    Enter,
    Recover,
    Unlock,
    /// The files turn out to be wrapped by a key that nobody gave.
    Locked(usize),
    Leave(Consent),
    Close,
    Crash,
}

fn dice() -> impl Strategy<Value = Dice> {
    prop_oneof![
        8 => any::<usize>().prop_map(Dice::Succeed),
        4 => any::<usize>().prop_map(Dice::Fail),
        2 => Just(Dice::Enter),
        1 => Just(Dice::Recover),
        2 => Just(Dice::Unlock),
        3 => any::<usize>().prop_map(Dice::Locked),
        2 => Just(Dice::Leave(Consent::Given)),
        2 => Just(Dice::Leave(Consent::AfterResigning)),
        1 => Just(Dice::Leave(Consent::Withheld)),
        1 => Just(Dice::Close),
        1 => Just(Dice::Crash),
    ]
}

/// The world outside of the machine.
#[derive(Debug)]
struct World {
    life: Membership,
    /// Effects that have not come back.
    under_way: Vec<Effect>,
    /// On the disk.
    record: bool,
    files: bool,
    /// In memory.
    agent_is_member: bool,
    /// Commands that wait for an answer.
    waiting: usize,
}

impl World {
    fn start(record: bool, files: bool) -> Self {
        let (life, first) = Membership::begin();
        let under_way = vec![first];
        Self { life, under_way, record, files, agent_is_member: false, waiting: 0 }
    }

    fn give(&mut self, event: Event) {
        let is_command =
            matches!(event, Event::Enter | Event::Recover | Event::Unlock | Event::Leave(_));
        let (life, effects) = self.life.step(event);
        self.life = life;
        if is_command {
            self.waiting += 1;
        }
        for effect in effects {
            match effect {
                Effect::Publish => self.agent_is_member = true,
                Effect::Dismiss => self.agent_is_member = false,
                // The opening ends like a failed entry; nobody waits for it then.
                Effect::Answer(Outcome::Failed) => self.waiting = self.waiting.saturating_sub(1),
                Effect::Answer(Outcome::Done) | Effect::Refuse(_) => {
                    assert!(self.waiting > 0, "an answer to nobody: {effect:?}");
                    self.waiting -= 1;
                }
                later => self.under_way.push(later),
            }
        }
        self.check();
    }

    fn come_back(&mut self, which: usize, good: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let effect = self.under_way.remove(which % self.under_way.len());
        let event = match (effect, good) {
            (Effect::Resume | Effect::Unlock, _) if !self.record => Event::NothingThere,
            (Effect::Resume | Effect::Unlock, true) => Event::Resumed,
            (Effect::Resume | Effect::Unlock, false) => Event::ResumeFailed,
            (Effect::Enter, good) => {
                self.files = true;
                self.record = good;
                if good { Event::Entered } else { Event::EnterFailed }
            }
            (Effect::Recover, true) => Event::Recovered,
            (Effect::Recover, false) => Event::RecoverFailed,
            (Effect::Forget, true) => {
                self.record = false;
                Event::Forgotten
            }
            (Effect::Forget, false) => Event::ForgetFailed,
            (Effect::Sweep, true) => {
                (self.record, self.files) = (false, false);
                Event::Swept
            }
            (Effect::Sweep, false) => Event::SweepFailed,
            (Effect::Resign, _) => Event::Resigned,
            (Effect::Tell, _) => Event::Told,
            (Effect::Drain, _) => Event::Drained,
            (Effect::CloseManager, _) => Event::ManagerClosed,
            (Effect::Wait, _) => Event::Retry,
            (other, _) => panic!("{other:?} takes no time"),
        };
        self.give(event);
    }

    /// The same, but that what is read of files needs another key.
    fn come_back_locked(&mut self, which: usize) {
        let count = self.under_way.len().max(1);
        let reads =
            matches!(self.under_way.get(which % count), Some(Effect::Resume | Effect::Unlock));
        if reads && self.record {
            self.under_way.remove(which % count);
            self.give(Event::FoundLocked);
        } else {
            self.come_back(which, true);
        }
    }

    fn check(&self) {
        let stage = self.life.stage();
        match stage {
            Stage::In => assert!(self.record && self.agent_is_member, "{self:?}"),
            Stage::Out(_) => assert!(!self.record && !self.agent_is_member, "{self:?}"),
            Stage::Unusable | Stage::Locked => assert!(self.record, "{self:?}"),
            _ => {}
        }
        if stage == Stage::Out(Leftovers::None) {
            assert!(!self.files, "{self:?}");
        }
        // Something always leads on: an effect, or a command.
        let rests = matches!(
            stage,
            Stage::In | Stage::Locked | Stage::Out(Leftovers::None) | Stage::Closed
        );
        assert!(rests || !self.under_way.is_empty(), "a dead end: {self:?}");
        if self.life.is_settled() {
            assert_eq!(self.waiting, 0, "nobody was answered: {self:?}");
        }
    }

    fn crash(&mut self) {
        *self = Self::start(self.record, self.files);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn it_always_settles_in_or_out(
        record in any::<bool>(),
        steps in proptest::collection::vec(dice(), 0..60),
    ) {
        let mut world = World::start(record, true);
        for step in steps {
            match step {
                Dice::Succeed(which) => world.come_back(which, true),
                Dice::Fail(which) => world.come_back(which, false),
                Dice::Enter => world.give(Event::Enter),
                Dice::Recover => world.give(Event::Recover),
                Dice::Unlock => world.give(Event::Unlock),
                Dice::Locked(which) => world.come_back_locked(which),
                Dice::Leave(consent) => world.give(Event::Leave(consent)),
                Dice::Close => world.give(Event::Close),
                Dice::Crash => world.crash(),
            }
        }
        let mut left = 100;
        while !world.under_way.is_empty() {
            world.come_back(0, true);
            left -= 1;
            prop_assert!(left > 0, "it never rests: {world:?}");
        }
        let rests = [Stage::In, Stage::Locked, Stage::Out(Leftovers::None), Stage::Closed];
        prop_assert!(rests.contains(&world.life.stage()), "{world:?}");
        prop_assert_eq!(world.waiting, 0);
        // Whatever was cut, the next commands work.
        world.crash();
        while !world.under_way.is_empty() {
            world.come_back(0, true);
        }
        if world.life.stage() == Stage::In {
            world.give(Event::Leave(Consent::Given));
        } else {
            world.give(Event::Enter);
        }
        let was = world.record;
        while !world.under_way.is_empty() {
            world.come_back(0, true);
        }
        prop_assert_eq!(world.record, !was);
    }
}

#[test]
fn a_manager_does_not_leave_by_accident_and_a_second_command_is_refused() {
    let (life, _) = Membership::begin();
    let (life, _) = life.step(Event::Resumed);
    let (life, effects) = life.step(Event::Leave(Consent::Withheld));
    assert_eq!(effects, [Effect::Refuse(Refusal::Manager)]);
    let (life, effects) = life.step(Event::Leave(Consent::Given));
    assert_eq!(effects, [Effect::Forget]);
    let (_, effects) = life.step(Event::Enter);
    assert_eq!(effects, [Effect::Refuse(Refusal::Busy)]);
}

#[test]
fn a_locked_manager_waits_for_its_key_and_leaves_only_by_force() {
    let (life, _) = Membership::begin();
    let (locked, effects) = life.step(Event::FoundLocked);
    assert_eq!((locked.stage(), effects.as_slice()), (Stage::Locked, [].as_slice()));
    assert!(locked.is_settled());
    for (command, refusal) in [
        (Event::Enter, Refusal::AlreadyMember),
        (Event::Recover, Refusal::Locked),
        (Event::Leave(Consent::Withheld), Refusal::Locked),
    ] {
        let (same, effects) = locked.step(command);
        assert_eq!((same, effects.as_slice()), (locked, [Effect::Refuse(refusal)].as_slice()));
    }
    let (trying, effects) = locked.step(Event::Unlock);
    assert_eq!(effects, [Effect::Unlock]);
    let (same, effects) = trying.step(Event::FoundLocked);
    assert_eq!((same, effects.as_slice()), (locked, [Effect::Answer(Outcome::Failed)].as_slice()));
    let (inside, effects) = trying.step(Event::Resumed);
    assert_eq!(inside.stage(), Stage::In);
    assert_eq!(effects, [Effect::Publish, Effect::Answer(Outcome::Done)]);
    let (_, effects) = inside.step(Event::Unlock);
    assert_eq!(effects, [Effect::Refuse(Refusal::NotLocked)]);
    let (_, effects) = locked.step(Event::Leave(Consent::Given));
    assert_eq!(effects, [Effect::Forget]);
}
