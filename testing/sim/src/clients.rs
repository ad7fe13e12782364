//! Clients: each writer counts one register up, readers read them all.

use std::time::Duration;

use shoal_store::{Store, StoreError};
use tokio::time::{Instant, sleep};

use crate::check::value;
use crate::host::{Hosts, put};
use crate::world::World;

/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(2);

/// Whether it may have happened all the same.
fn is_unsure(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::NoQuorum { .. }
            | StoreError::Deposed { .. }
            | StoreError::Stopped { .. }
            | StoreError::Full { .. }
            | StoreError::Failing { .. }
    )
}

/// The pause of a client between two requests.
async fn rest(world: &World) {
    let millis = world.dice(|dice| if dice.happens(100) { 300 } else { dice.between(5, 60) });
    sleep(Duration::from_millis(millis)).await;
}

/// One of all stores, mostly the one that leads.
fn some(world: &World, hosts: &Hosts) -> Option<Store> {
    if world.dice(|dice| dice.happens(700))
        && let Some(leader) = hosts.leader()
    {
        return Some(leader);
    }
    let stores = hosts.stores();
    world.dice(|dice| dice.pick(&stores).cloned())
}

/// Counts `register` up for ever, one at a time.
pub async fn write(world: World, hosts: Hosts, register: u16) {
    loop {
        rest(&world).await;
        let Some(store) = some(&world, &hosts) else { continue };
        let _ = write_once(&world, &store, register).await;
    }
}

/// Writes the next value; whether that was acknowledged.
pub async fn write_once(world: &World, store: &Store, register: u16) -> bool {
    let raft_id = store.raft_id();
    let value = world.lock().check.next(register);
    let answer = store.propose(put(register, value), Instant::now() + REQUEST).await;
    let said = answer.as_ref().map(drop).map_err(ToString::to_string);
    world.note("writer", format_args!("{register}={value} at m{raft_id}: {said:?}"));
    match answer {
        Ok(_) => world.lock().check.acknowledge(register, value),
        Err(error) if is_unsure(&error) => {}
        Err(_) => world.lock().check.refuse(register, value),
    }
    said.is_ok()
}

/// Reads for ever: the leader says what is confirmed, any store shows it.
pub async fn read(world: World, hosts: Hosts) {
    loop {
        rest(&world).await;
        let (Some(leader), Some(shown)) = (some(&world, &hosts), some(&world, &hosts)) else {
            continue;
        };
        let least: Vec<(u16, u64)> = {
            let check = &world.lock().check;
            check.registers().into_iter().map(|number| (number, check.least(number))).collect()
        };
        let by = Instant::now() + REQUEST;
        let Ok(index) = leader.read_index(by).await else { continue };
        if shown.applied(index, by).await.is_err() {
            continue;
        }
        let (state, who) = (shown.state(), format!("m{}", shown.raft_id()));
        world.note("reader", format_args!("{who} shows {}", state.revision.0));
        for (number, least) in least {
            world.check(|check, _| {
                let found = value(&state, number)?;
                check.read(&who, number, found, least)
            });
        }
    }
}
