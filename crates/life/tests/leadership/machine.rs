//! One machine alone, with any events in any order.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use shoal_life::leadership::Leadership;
use shoal_life::leadership::cadence::Cadence;
use shoal_life::leadership::event::{
    Answer, BeatNumber, Bidding, Command, CoreView, Effect, Event, Evidence, Position, Probe,
    RaftId, Role, Round, Standing, Term, Voice, Why, Word,
};
use shoal_life::leadership::voters::Voters;

const OWN: RaftId = RaftId(1);
const LOOK: Event = Event::Look { passed: Duration::from_millis(25), dice: 1 };

fn set(ids: &[u64]) -> BTreeSet<RaftId> {
    ids.iter().copied().map(RaftId).collect()
}

fn view(role: Role, term: u64, sets: &[&[u64]]) -> CoreView {
    let voters = Voters::new(sets.iter().map(|ids| set(ids)));
    CoreView { role, term: Term(term), voters, ..CoreView::default() }
}

fn one(life: Leadership, event: Event) -> (Leadership, Vec<Effect>) {
    let (life, mut effects) = life.step(event);
    effects.retain(|effect| !matches!(effect, Effect::Show(_)));
    (life, effects)
}

/// Gives events one after the other; what the last one led to, but for what is shown.
fn give(life: Leadership, events: impl IntoIterator<Item = Event>) -> (Leadership, Vec<Effect>) {
    events.into_iter().fold((life, vec![]), |(life, _), event| one(life, event))
}

fn looks(life: Leadership, ms: u64) -> (Leadership, Vec<Effect>) {
    (0..ms / 25).fold((life, vec![]), |(life, mut all), _| {
        let (life, effects) = one(life, LOOK);
        all.extend(effects);
        (life, all)
    })
}

fn asks(effects: &[Effect]) -> Option<Round> {
    effects.iter().find_map(|effect| match effect {
        Effect::Probe { round, .. } => Some(*round),
        _ => None,
    })
}

fn follower(sets: &[&[u64]]) -> Leadership {
    let life = Leadership::begin(OWN, Cadence::PRODUCT);
    give(life, [Event::Core(view(Role::Follower, 3, sets))]).0
}

fn beat(number: u64) -> Event {
    let word = Word::Beat { number: BeatNumber(number), voice: Voice::Full };
    Event::Heard { from: RaftId(2), term: Term(3), word }
}

fn answer(from: u64, round: Round, why: Why, lease_ms: u64) -> Event {
    let lease_left = Duration::from_millis(lease_ms);
    Event::Answered { from: RaftId(from), round, answer: Answer { why, lease_left, leader: None } }
}

fn refused() -> Event {
    Event::Lost { peer: RaftId(2), how: Evidence::Refused }
}

fn ask(from: u64, term: u64, index: u64) -> Event {
    let last = Position { term: Term(0), index };
    Event::Asked { from: RaftId(from), probe: Probe { term: Term(term), last, ..probe() } }
}

fn probe() -> Probe {
    Probe { epoch: Default::default(), term: Term(0), last: Position::default() }
}

fn said(effects: &[Effect]) -> Why {
    let reply = effects.iter().find_map(|effect| match effect {
        Effect::Reply(answer) => Some(answer.why),
        _ => None,
    });
    reply.unwrap()
}

#[test]
fn each_set_of_a_joint_configuration_needs_its_majority_and_its_leases_over() {
    let (life, effects) = looks(follower(&[&[1, 2, 3], &[1, 4, 5]]), 1_100);
    let round = asks(&effects).expect("it asks");
    let (life, effects) =
        give(life, [answer(2, round, Why::Yes, 0), answer(3, round, Why::Yes, 0)]);
    assert_eq!(effects, [], "the second set has not spoken");
    let (life, effects) = one(life, answer(4, round, Why::Yes, 100));
    assert_eq!(effects, [], "its lease is not over");
    let (life, effects) = looks(life, 100);
    assert_eq!(effects, [], "one look more, as the answer came between two");
    let (_, effects) = looks(life, 25);
    assert_eq!(effects, [Effect::Stand]);
}

#[test]
fn a_yes_that_is_too_old_counts_no_more() {
    let (life, effects) = looks(follower(&[&[1, 2, 3]]), 1_100);
    let round = asks(&effects).unwrap();
    let (life, _) = one(life, answer(3, round, Why::Yes, 100));
    // It was not let run; others may have elected somebody.
    let long = Event::Look { passed: Duration::from_secs(3), dice: 0 };
    let (life, effects) = one(life, long);
    assert_eq!(effects, []);
    let (_, effects) = looks(life, 500);
    assert!(asks(&effects).is_some_and(|next| next > round), "it asks anew: {effects:?}");
}

#[test]
fn a_dead_process_is_known_by_two_refusals_and_not_by_a_closed_connection() {
    let (life, _) = give(follower(&[&[1, 2, 3]]), [beat(1)]);
    let closed = Event::Lost { peer: RaftId(2), how: Evidence::Closed };
    let (life, effects) = give(life, [closed, refused()]);
    assert_eq!(asks(&effects), None);
    let (_, effects) = one(life.clone(), refused());
    assert!(asks(&effects).is_some(), "{effects:?}");
    // Two that are far apart are two restarts.
    let (life, _) = looks(life, 300);
    let (life, effects) = one(life, refused());
    assert_eq!(asks(&effects), None);
    // A word in between says that it lives.
    let (_, effects) = give(life, [beat(2), refused()]);
    assert_eq!(asks(&effects), None);
}

#[test]
fn yes_says_who_hears_no_leader_and_promised_nothing() {
    let (life, _) = give(follower(&[&[1, 2, 3, 4, 5]]), [beat(1)]);
    let (life, effects) = one(life, ask(3, 4, 0));
    assert_eq!(said(&effects), Why::Hears);
    let (life, effects) = give(life, [refused(), refused(), ask(4, 4, 0)]);
    // It is the first in order: it asks itself, and goes before a larger number.
    assert_eq!(said(&effects), Why::Stands);
    let (life, effects) = one(life, ask(5, 4, 9));
    assert_eq!(said(&effects), Why::Yes, "the longer log goes first");
    let (life, effects) = one(life, ask(4, 4, 9));
    assert_eq!(said(&effects), Why::Promised);
    let (life, _) = looks(life, 300);
    let (_, effects) = one(life, ask(4, 4, 9));
    assert_eq!(said(&effects), Why::Yes, "promises lapse");
}

#[test]
fn yes_says_nobody_to_a_shorter_log_or_a_stranger() {
    let mut core = view(Role::Follower, 3, &[&[1, 2, 3]]);
    core.last = Position { term: Term(3), index: 7 };
    let (life, _) = looks(follower(&[&[1, 2, 3]]), 800);
    let (life, effects) = give(life, [Event::Core(core), ask(3, 4, 6)]);
    assert_eq!(said(&effects), Why::Behind);
    let stranger = Probe { epoch: shoal_life::leadership::event::Epoch(1), ..probe() };
    let (_, effects) = one(life, Event::Asked { from: RaftId(3), probe: stranger });
    assert_eq!(said(&effects), Why::Stranger);
}

#[test]
fn a_bidding_needs_no_probe_but_the_whole_log_and_the_others_leases() {
    let last = Position { term: Term(3), index: 7 };
    let bidding = Bidding { from: RaftId(2), term: Term(3), last, beat: BeatNumber(4) };
    let told = || Event::Command(Command::StandNow(bidding));
    let mut whole = view(Role::Follower, 3, &[&[1, 2, 3]]);
    whole.last = last;
    let append = Event::Heard { from: RaftId(2), term: Term(3), word: Word::Append };
    let (life, effects) = give(follower(&[&[1, 2, 3]]), [beat(4), append.clone(), told()]);
    assert_eq!(effects, [], "its log is short");
    let (_, effects) = one(life, Event::Core(whole.clone()));
    assert_eq!(effects, [Effect::Stand]);
    // Of five, the leader's vote is not enough: the others' leases have to end.
    let five: &[u64] = &[1, 2, 3, 4, 5];
    let core = CoreView { voters: Voters::new([set(five)]), ..whole.clone() };
    let (life, effects) = give(follower(&[five]), [Event::Core(core), append.clone(), told()]);
    assert!(!effects.contains(&Effect::Stand));
    let (_, effects) = looks(life, 600);
    assert!(effects.contains(&Effect::Stand), "{effects:?}");
    // A later beat says that the leader serves again.
    let known = [beat(4), append, Event::Core(whole)];
    let (life, _) = give(follower(&[&[1, 2, 3]]), known);
    let (life, _) = one(life, beat(5));
    let (_, effects) = one(life, told());
    assert_eq!(effects, [], "it is over");
}

#[test]
fn who_cannot_read_the_log_votes_and_does_not_lead() {
    let voters: &[&[u64]] = &[&[1, 2, 3]];
    let mut barred = view(Role::Follower, 3, voters);
    barred.barred.insert(RaftId(1));
    let (life, _) = give(follower(voters), [Event::Core(barred.clone())]);
    let (life, effects) = looks(life, 3_000);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Probe { .. } | Effect::Stand)));
    let bidding =
        Bidding { from: RaftId(2), term: Term(3), last: Position::default(), beat: BeatNumber(9) };
    let (life, effects) = give(life, [Event::Command(Command::StandNow(bidding))]);
    assert!(!effects.contains(&Effect::Stand));
    let probe = Probe { term: Term(4), ..probe() };
    let (life, effects) = one(life, Event::Asked { from: RaftId(2), probe });
    assert_eq!(said(&effects), Why::Yes);
    // Alone, it does not stand either.
    let mut alone = view(Role::Follower, 3, &[&[1]]);
    alone.barred.insert(RaftId(1));
    let (_, effects) = looks(one(life, Event::Core(alone)).0, 3_000);
    assert!(!effects.contains(&Effect::Stand), "{effects:?}");
    // In office, it does nothing; anybody else would.
    let mut leads = view(Role::Leader, 3, voters);
    leads.leader = Some(RaftId(1));
    leads.applied = Position { term: Term(3), index: 1 };
    let can = give(follower(voters), [Event::Core(leads.clone())]).0;
    assert_eq!(can.standing(), Standing::Leading { term: Term(3) });
    leads.barred.insert(RaftId(1));
    let (cannot, effects) = give(follower(voters), [Event::Core(leads)]);
    assert!(matches!(cannot.standing(), Standing::Nobody { .. }), "{:?}", cannot.standing());
    assert!(effects.contains(&Effect::Mute(true)), "{effects:?}");
}

fn position() -> impl Strategy<Value = Position> {
    (0..4_u64, 0..4_u64).prop_map(|(term, index)| Position { term: Term(term), index })
}

fn any_view() -> impl Strategy<Value = CoreView> {
    let role = prop_oneof![
        Just(Role::Learner),
        Just(Role::Follower),
        Just(Role::Candidate),
        Just(Role::Leader)
    ];
    let ids = || proptest::collection::btree_set((1..6_u64).prop_map(RaftId), 1..5);
    let sets = proptest::collection::vec(ids(), 1..3);
    let matched = proptest::collection::btree_map((1..6_u64).prop_map(RaftId), 0..5_u64, 0..5);
    let leader = proptest::option::of((1..6_u64).prop_map(RaftId));
    (0..6_u64, role, leader, position(), position(), sets, ids(), matched).prop_map(
        |(term, role, leader, last, applied, sets, learners, matched)| CoreView {
            term: Term(term),
            role,
            leader,
            last,
            applied,
            voters: Voters::new(sets),
            learners,
            matched,
            ..CoreView::default()
        },
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    let id = || (2..7_u64).prop_map(RaftId);
    let term = || (0..7_u64).prop_map(Term);
    let number = || (0..20_u64).prop_map(BeatNumber);
    let voice = prop_oneof![Just(Voice::Full), Just(Voice::Mute)];
    let word = prop_oneof![
        (number(), voice).prop_map(|(number, voice)| Word::Beat { number, voice }),
        Just(Word::Append)
    ];
    let how = prop_oneof![Just(Evidence::Closed), Just(Evidence::Refused), Just(Evidence::Unknown)];
    let why = prop_oneof![Just(Why::Yes), Just(Why::Hears), Just(Why::Behind), Just(Why::Promised)];
    let bidding = (id(), term(), position(), number())
        .prop_map(|(from, term, last, beat)| Bidding { from, term, last, beat });
    prop_oneof![
        8 => (0..200_u64, any::<u64>())
            .prop_map(|(ms, dice)| Event::Look { passed: Duration::from_millis(ms), dice }),
        3 => any_view().prop_map(Event::Core),
        2 => (id(), term(), word).prop_map(|(from, term, word)| Event::Heard { from, term, word }),
        2 => (id(), number()).prop_map(|(from, number)| Event::Echo { from, number }),
        3 => (id(), how).prop_map(|(peer, how)| Event::Lost { peer, how }),
        2 => (id(), term(), position()).prop_map(|(from, term, last)| {
            Event::Asked { from, probe: Probe { term, last, ..probe() } }
        }),
        3 => (id(), 0..4_u64, why, 0..600_u64).prop_map(|(from, round, why, lease)| {
            answer(from.0, Round(round), why, lease)
        }),
        1 => bidding.prop_map(|bidding| Event::Command(Command::StandNow(bidding))),
        1 => proptest::option::of(id())
            .prop_map(|to| Event::Command(Command::HandOver { to })),
        1 => Just(Event::Command(Command::Resume)),
        1 => Just(Event::Held),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Time alone leads on from every state: a voter that hears nobody asks or stands, a leader
    /// beats, a hand-over is answered, and what was held or muted is let go as the states say.
    #[test]
    fn time_leads_on_from_every_state(
        events in proptest::collection::vec(any_event(), 0..60),
        core in any_view(),
    ) {
        let mut life = Leadership::begin(OWN, Cadence::PRODUCT);
        let (mut mute, mut hold, mut asked) = (false, false, 0_i32);
        let (mut shown, mut leads) = (None, false);
        for event in events.into_iter().chain([Event::Core(core.clone())]) {
            if let Event::Core(core) = &event {
                leads = core.role == Role::Leader;
            }
            asked += i32::from(matches!(event, Event::Command(Command::HandOver { .. })));
            let (next, effects) = life.step(event);
            life = next;
            for effect in effects {
                match effect {
                    Effect::Mute(now) => { prop_assert_ne!(mute, now); mute = now; }
                    Effect::Hold(now) => { prop_assert_ne!(hold, now); hold = now; }
                    Effect::Done(_) => asked -= 1,
                    Effect::Show(now) => shown = Some(now),
                    Effect::TellToStand { .. } => prop_assert!(mute && hold),
                    Effect::Stand | Effect::Probe { .. } => prop_assert!(!leads),
                    Effect::Beat { .. } => prop_assert!(leads),
                    _ => {}
                }
            }
            prop_assert!(leads || !(mute || hold), "it holds what it has not");
            let says = matches!(shown, Some(Standing::Leading { .. }));
            prop_assert!(leads || !says);
        }
        let (life, effects) = looks(life, 8_000);
        let answered = effects.iter().filter(|effect| matches!(effect, Effect::Done(_))).count();
        prop_assert_eq!(asked, i32::try_from(answered).unwrap(), "a hand-over without an answer");
        let (_, effects) = looks(life, 7_000);
        let stands = |effect: &Effect| matches!(effect, Effect::Stand | Effect::Probe { .. });
        let beats = |effect: &Effect| matches!(effect, Effect::Beat { .. });
        if leads {
            prop_assert!(effects.iter().any(beats));
        } else if core.role != Role::Learner && core.voters.contains(OWN) {
            prop_assert!(effects.iter().any(stands));
        } else {
            prop_assert!(!effects.iter().any(stands));
        }
    }
}
