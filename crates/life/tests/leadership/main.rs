//! Who leads a group, under lost, late and doubled messages, cuts, stops and kills.
//!
//! Distributions are of the model on its virtual clock, not measured; `--nocapture` shows them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod consensus;
mod machine;
mod storm;
mod world;

use shoal_life::leadership::event::{Command, Keeps, Outcome, RaftId, Standing};

use crate::world::{Dice, FAIR, MS, Micros, Weather, World};

const SECOND: Micros = 1_000 * MS;

/// A group that has a leader and has worked for a while, with writes or idle.
fn working(count: u64, seed: u64, weather: Weather) -> (World, u64) {
    let mut world = World::new(count, seed, weather);
    world.until(5 * SECOND, |world| world.settled().is_some()).expect("no first leader in 5 s");
    let length = SECOND + world.dice.roll() % (2 * SECOND);
    let busy = world.dice.percent(50);
    run(&mut world, length, busy);
    let leader = world.settled().expect("a leader that stays");
    (world, leader)
}

fn run(world: &mut World, length: Micros, busy: bool) {
    let until = world.now + length;
    while world.now < until {
        if busy {
            world.write();
        }
        let step = (20 * MS).min(until - world.now);
        world.run(step);
    }
}

/// Prints a distribution; gives the greatest back.
fn show(name: &str, mut times: Vec<Micros>) -> Micros {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100] / MS;
    println!(
        "{name}: {} runs, median {} ms, 90 % {} ms, 99 % {} ms, worst {} ms",
        times.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    *times.last().unwrap()
}

/// The time from the loss of a leader to another that says so.
fn replaced(count: u64, seed: u64, weather: Weather, lose: impl Fn(&mut World, u64)) -> Micros {
    let (mut world, old) = working(count, seed, weather);
    lose(&mut world, old);
    let time = world.until(20 * SECOND, |world| {
        world.members.iter().any(|member| member.id != old && member.leads())
    });
    time.unwrap_or_else(|| panic!("nobody leads: {count} members, seed {seed}"))
}

const RUNS: u64 = 50;

#[test]
fn a_killed_leader_is_replaced_within_two_seconds() {
    for count in [3, 5, 7] {
        let times = (0..RUNS).map(|seed| replaced(count, seed, FAIR, World::kill)).collect();
        let worst = show(&format!("killed, with evidence, {count} members"), times);
        assert!(worst <= 2 * SECOND, "{} ms", worst / MS);
    }
}

#[test]
fn a_leader_whose_host_falls_silent_is_replaced_within_three_seconds() {
    for count in [3, 5, 7] {
        let times = (0..RUNS).map(|seed| replaced(count, seed, FAIR, World::vanish)).collect();
        let worst = show(&format!("silent host, {count} members"), times);
        assert!(worst <= 3 * SECOND, "{} ms", worst / MS);
    }
}

#[test]
fn slow_disks_and_lost_messages_delay_a_new_leader_but_do_not_prevent_it() {
    let slow = Weather { sync: 20 * MS..200 * MS, ..FAIR };
    let times = (0..RUNS).map(|seed| replaced(3, seed, slow.clone(), World::kill)).collect();
    let worst = show("killed, with evidence, 3 members, 20 to 200 ms for each write", times);
    assert!(worst <= 4 * SECOND, "{} ms", worst / MS);
    let lossy = Weather { loses: 10, doubles: 10, delay: 100..50 * MS, ..FAIR };
    let times = (0..RUNS).map(|seed| {
        let (mut world, old) = working(5, seed, FAIR);
        world.weather = lossy.clone();
        world.kill(old);
        world.until(30 * SECOND, |world| world.leader().is_some()).expect("a leader in 30 s")
    });
    let worst = show("killed, with evidence, 5 members, one message in ten lost", times.collect());
    assert!(worst <= 10 * SECOND, "{} ms", worst / MS);
}

#[test]
fn nobody_stands_while_all_beats_arrive_in_time_and_nobody_was_stopped() {
    let rough =
        Weather { delay: 0..300 * MS, sync: MS..400 * MS, late: 0..300 * MS, loses: 0, doubles: 5 };
    for count in [1, 2, 3, 5, 7] {
        for seed in 0..4 {
            let (mut world, leader) = working(count, seed, FAIR);
            let (term, rounds) = (world.term(), world.rounds());
            world.weather = rough.clone();
            run(&mut world, 30 * SECOND, seed % 2 == 0);
            assert_eq!((world.term(), world.rounds()), (term, rounds), "{count}, seed {seed}");
            assert_eq!(world.members.iter().map(|member| member.muted).sum::<u64>(), 0);
            assert!(world.member(leader).leads());
        }
    }
}

#[test]
fn nobody_stands_after_the_whole_machine_stood_still() {
    for count in [1, 2, 3, 5, 7] {
        for seed in 0..6 {
            let (mut world, leader) = working(count, seed, FAIR);
            let (term, rounds) = (world.term(), world.rounds());
            for _ in 0..5 {
                let length = world.dice.of(&(100 * MS..4 * SECOND));
                for id in 1..=count {
                    world.stop(id, length);
                }
                run(&mut world, 6 * SECOND, seed % 2 == 0);
            }
            assert_eq!((world.term(), world.rounds()), (term, rounds), "{count}, seed {seed}");
            assert!(world.member(leader).leads());
        }
    }
}

/// How a member is cut off.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Off,
    HearsNothing,
    IsNotHeard,
    FromTheLeader,
    HearsNoLeader,
}

#[test]
fn a_member_that_was_cut_off_and_returns_never_raises_the_term() {
    let cuts =
        [Cut::Off, Cut::HearsNothing, Cut::IsNotHeard, Cut::FromTheLeader, Cut::HearsNoLeader];
    for count in [3, 5, 7] {
        for (seed, cut) in (0..8).flat_map(|seed| cuts.map(|cut| (seed, cut))) {
            let (mut world, leader) = working(count, seed, FAIR);
            let (term, busy) = (world.term(), seed % 2 == 0);
            let stood: u64 = world.members.iter().map(|member| member.stood).sum();
            let off = (1..=count).rev().find(|id| *id != leader).unwrap();
            for other in (1..=count).filter(|other| *other != off) {
                match cut {
                    Cut::Off => world.cuts.extend([(off, other), (other, off)]),
                    Cut::HearsNothing => world.cuts.extend([(other, off)]),
                    Cut::IsNotHeard => world.cuts.extend([(off, other)]),
                    Cut::FromTheLeader => world.cuts.extend([(leader, off), (off, leader)]),
                    Cut::HearsNoLeader => world.cuts.extend([(leader, off)]),
                }
            }
            let length = 200 * MS + world.dice.roll() % (8 * SECOND);
            run(&mut world, length, busy);
            world.cuts.clear();
            run(&mut world, 3 * SECOND, busy);
            let what = format!("{count} members, seed {seed}, {cut:?}");
            assert_eq!(world.term(), term, "{what}");
            let now: u64 = world.members.iter().map(|member| member.stood).sum();
            assert_eq!(now, stood, "{what}");
            assert_eq!(world.settled(), Some(leader), "{what}");
        }
    }
}

#[test]
fn a_leader_that_is_cut_off_is_replaced_and_follows_when_it_returns() {
    for count in [3, 5, 7] {
        for seed in 0..40 {
            let (mut world, old) = working(count, seed, FAIR);
            for other in (1..=count).filter(|other| *other != old) {
                match seed % 3 {
                    0 => world.cuts.extend([(old, other), (other, old)]),
                    // It hears nobody: only its silence lets the others go on.
                    1 => world.cuts.extend([(other, old)]),
                    _ => world.cuts.extend([(old, other)]),
                }
            }
            run(&mut world, 4 * SECOND, seed % 2 == 0);
            let others = |world: &World| {
                let mut others = world.members.iter().filter(|member| member.id != old);
                others.find(|member| member.leads()).map(|member| member.id)
            };
            let new = others(&world).unwrap_or_else(|| panic!("{count}, seed {seed}"));
            assert!(!world.member(old).leads(), "two say that they lead: seed {seed}");
            let term = world.term();
            world.cuts.clear();
            run(&mut world, 4 * SECOND, seed % 2 == 0);
            assert_eq!((world.term(), world.settled()), (term, Some(new)), "{count}, seed {seed}");
        }
    }
}

#[test]
fn a_leader_without_a_majority_is_mute_and_serves_again_in_the_same_term() {
    for count in [2, 3, 5, 7] {
        for seed in 0..20 {
            let (mut world, leader) = working(count, seed, FAIR);
            let term = world.term();
            let others: Vec<u64> = (1..=count).filter(|other| *other != leader).collect();
            others.iter().for_each(|other| world.vanish(*other));
            run(&mut world, 3 * SECOND, true);
            let Some(Standing::Nobody { missing, .. }) = world.member(leader).shown.clone() else {
                panic!("it says that it leads: {:?}", world.member(leader).shown)
            };
            assert_eq!(missing, others.iter().copied().map(RaftId).collect());
            assert_eq!(world.member(leader).muted, 1);
            // Its log is longer by what it could not give away: only it can lead.
            let length = |world: &mut World, id: u64| world.member(id).core.log.len();
            let longest = length(&mut world, leader);
            assert!(others.iter().all(|other| length(&mut world, *other) < longest));
            others.iter().for_each(|other| world.start(*other));
            run(&mut world, 3 * SECOND, false);
            assert_eq!((world.term(), world.settled()), (term, Some(leader)), "seed {seed}");
        }
    }
}

#[test]
fn a_hand_over_ends_with_the_target_leading() {
    for count in [2, 3, 5, 7] {
        let mut times = vec![];
        for seed in 0..RUNS {
            let (mut world, old) = working(count, seed, FAIR);
            let to = (1..=count).filter(|id| *id != old).max().map(RaftId);
            let to = to.filter(|_| seed % 2 == 0);
            world.command(old, Command::HandOver { to });
            let began = world.now;
            while world.member(old).outcomes.is_empty() {
                run(&mut world, MS, true);
                assert!(world.now - began < 3 * SECOND, "no answer: {count}, seed {seed}");
            }
            let [Outcome::HandedOver { leader }] = world.member(old).outcomes[..] else {
                panic!("{:?}: {count}, seed {seed}", world.member(old).outcomes)
            };
            assert!(to.is_none_or(|to| to == leader), "another: {count}, seed {seed}");
            let settles = |world: &World| world.settled() == Some(leader.0);
            world.until(SECOND, settles).expect("the target leads");
            times.push(world.now - began);
            run(&mut world, 3 * SECOND, true);
            assert!(settles(&world));
            assert_eq!(world.member(old).muted, 1);
        }
        show(&format!("handed over, {count} members"), times);
    }
}

/// What prevents a hand-over.
#[derive(Clone, Copy, Debug)]
enum Against {
    TargetVanishes,
    TargetDies,
    BiddingIsLost,
    TargetIsNotHeard,
    Resume,
}

#[test]
fn a_hand_over_that_fails_ends_with_the_old_leader_serving_again() {
    use Against::{BiddingIsLost, Resume, TargetDies, TargetIsNotHeard, TargetVanishes};
    let all = [TargetVanishes, TargetDies, BiddingIsLost, TargetIsNotHeard, Resume];
    for count in [3, 5, 7] {
        for (seed, against) in (0..10).flat_map(|seed| all.map(|against| (seed, against))) {
            let (mut world, old) = working(count, seed, FAIR);
            let term = world.term();
            let target = (1..=count).filter(|id| *id != old).max().unwrap();
            world.command(old, Command::HandOver { to: Some(RaftId(target)) });
            let others = 1..=count;
            match against {
                TargetVanishes => world.vanish(target),
                TargetDies => world.kill(target),
                BiddingIsLost => world.cuts.extend([(old, target)]),
                TargetIsNotHeard => world.cuts.extend(others.map(|other| (target, other))),
                Resume => world.command(old, Command::Resume),
            }
            run(&mut world, 3 * SECOND, true);
            let what = format!("{count} members, seed {seed}, {against:?}");
            let kept = if matches!(against, Resume) { Keeps::Resumed } else { Keeps::Late };
            assert_eq!(world.member(old).outcomes, [Outcome::Kept(kept)], "{what}");
            assert!(world.member(old).leads(), "{what}");
            // One that stood unheard has a term that it brings back: then somebody leads again.
            if !matches!(against, TargetIsNotHeard) {
                assert_eq!(world.term(), term, "{what}");
            }
            world.heal(FAIR);
            run(&mut world, 4 * SECOND, true);
            assert!(world.settled().is_some(), "{what}");
        }
    }
}

#[test]
fn a_group_of_one_leads_at_once() {
    for seed in 0..20 {
        let mut world = World::new(1, seed, FAIR);
        let time = world.until(SECOND, |world| world.leader().is_some()).unwrap();
        assert!(time <= 50 * MS, "{time}");
        assert_eq!(world.member(1).rounds, 0);
    }
}

#[test]
fn dice_give_the_same_again() {
    let play = || {
        let (mut world, leader) = working(5, 7, FAIR);
        world.kill(leader);
        world.run(5 * SECOND);
        (world.term(), world.leader(), world.dice.roll())
    };
    assert_eq!(play(), play());
    assert_ne!(Dice(1).roll(), Dice(2).roll());
}
