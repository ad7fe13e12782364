//! Every fault in any order, then calm: somebody leads again.

use proptest::prelude::*;
use shoal_life::leadership::event::{Command, RaftId};

use crate::world::{FAIR, MS, Micros, Weather, World};
use crate::{SECOND, run};

/// What happens to a group, as dice.
#[derive(Clone, Debug)]
enum Fault {
    Kill(u64),
    Vanish(u64),
    Start(u64),
    Stop(u64, Micros),
    StopAll(Micros),
    Cut(u64, u64),
    CutOff(u64),
    Mend,
    Weather(Weather),
    HandOver(u64, Option<u64>),
    Resume(u64),
}

fn fault() -> impl Strategy<Value = Fault> {
    let who = || 0_u64..7;
    let length = || (1..4_000_u64).prop_map(|ms| ms * MS);
    let weather = (0..800_u64, 1..300_u64, 0..100_u64, 0..40_u64, 0..20_u64);
    let weather = weather.prop_map(|(delay, sync, late, loses, doubles)| Weather {
        delay: 0..delay * MS + 1,
        sync: 0..sync * MS,
        late: 0..late * MS + 1,
        loses,
        doubles,
    });
    prop_oneof![
        3 => who().prop_map(Fault::Kill),
        2 => who().prop_map(Fault::Vanish),
        4 => who().prop_map(Fault::Start),
        3 => (who(), length()).prop_map(|(who, length)| Fault::Stop(who, length)),
        1 => length().prop_map(Fault::StopAll),
        3 => (who(), who()).prop_map(|(from, to)| Fault::Cut(from, to)),
        2 => who().prop_map(Fault::CutOff),
        3 => Just(Fault::Mend),
        2 => weather.prop_map(Fault::Weather),
        2 => (who(), proptest::option::of(who())).prop_map(|(who, to)| Fault::HandOver(who, to)),
        1 => who().prop_map(Fault::Resume),
    ]
}

fn happen(world: &mut World, fault: Fault) {
    let count = world.members.len() as u64;
    let id = |who: u64| who % count + 1;
    match fault {
        Fault::Kill(who) => world.kill(id(who)),
        Fault::Vanish(who) => world.vanish(id(who)),
        Fault::Start(who) => world.start(id(who)),
        Fault::Stop(who, length) => world.stop(id(who), length),
        Fault::StopAll(length) => (1..=count).for_each(|who| world.stop(who, length)),
        Fault::Cut(from, to) => world.cuts.extend([(id(from), id(to))]),
        Fault::CutOff(who) => world.isolate(id(who)),
        Fault::Mend => world.cuts.clear(),
        Fault::Weather(weather) => world.weather = weather,
        Fault::HandOver(who, to) => {
            // Whoever is told and does not lead says so.
            let who = world.leader().unwrap_or_else(|| id(who));
            world.command(who, Command::HandOver { to: to.map(|to| RaftId(id(to))) });
        }
        Fault::Resume(who) => world.command(id(who), Command::Resume),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// The world itself checks at each step that no term is won twice and nothing confirmed is
    /// lost.
    #[test]
    fn after_any_storm_somebody_leads(
        count in prop_oneof![Just(1_u64), Just(2), Just(3), Just(5), Just(7)],
        seed in any::<u64>(),
        faults in proptest::collection::vec((fault(), 1..1_500_u64), 0..25),
    ) {
        let mut world = World::new(count, seed, FAIR);
        for (fault, after) in faults {
            run(&mut world, after * MS, seed % 2 == 0);
            happen(&mut world, fault);
        }
        world.heal(FAIR);
        let time = world.until(10 * SECOND, |world| world.settled().is_some());
        prop_assert!(time.is_some(), "nobody leads 10 s after the storm");
        let (term, rounds) = (world.term(), world.rounds());
        run(&mut world, 10 * SECOND, true);
        prop_assert!(world.settled().is_some());
        // What was under way may come to its end; then it is quiet.
        let later = (world.term(), world.rounds());
        prop_assert!(later.0 <= term + 1 && later.1 <= rounds + 20, "{term} {rounds} {later:?}");
        run(&mut world, 10 * SECOND, true);
        prop_assert_eq!((world.term(), world.rounds()), later);
    }

    /// A majority is enough, whoever else is away.
    #[test]
    fn a_majority_is_enough(
        count in prop_oneof![Just(3_u64), Just(5), Just(7)],
        seed in any::<u64>(),
        faults in proptest::collection::vec((fault(), 1..1_500_u64), 0..15),
        away in proptest::collection::vec((0..7_u64, any::<bool>()), 0..4),
    ) {
        let mut world = World::new(count, seed, FAIR);
        for (fault, after) in faults {
            run(&mut world, after * MS, seed % 2 == 0);
            happen(&mut world, fault);
        }
        world.heal(FAIR);
        run(&mut world, (seed % 3_000) * MS, true);
        for (who, vanishes) in away.into_iter().take((count as usize - 1) / 2) {
            let id = who % count + 1;
            if vanishes { world.vanish(id) } else { world.kill(id) }
        }
        let time = world.until(10 * SECOND, |world| world.settled().is_some());
        prop_assert!(time.is_some(), "nobody leads 10 s after a minority went");
    }
}
