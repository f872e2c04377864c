//! Who gets in: a bound on connections, and which one has to go for a new one.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Limits;

/// The connections of a listener that count.
#[derive(Debug)]
pub(crate) struct Room {
    max: usize,
    max_per_address: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    connections: HashMap<u64, (IpAddr, Arc<Activity>)>,
    by_address: HashMap<IpAddr, usize>,
}

/// What a connection is doing.
#[derive(Debug)]
pub(crate) struct Activity {
    state: Mutex<State>,
    /// Cancelled when the connection has to go at once.
    pub(crate) evicted: CancellationToken,
}

/// Requests of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State {
    /// Whether there ever was one.
    pub(crate) asked: bool,
    /// How many are open.
    pub(crate) open: usize,
    /// How many of those are of somebody who may call.
    admitted: usize,
    /// Since when none is.
    pub(crate) idle_since: Instant,
}

/// A place in the room, left by dropping it.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    id: u64,
}

/// An open request, ended by dropping it.
#[derive(Debug)]
pub(crate) struct Open {
    activity: Arc<Activity>,
    admitted: AtomicBool,
}

/// Among the extensions of a request: the way to say that its caller is somebody who may call. A
/// connection with such a request is not sent away for a new one; one whose requests are those of
/// strangers, such as a watch of the health, is.
#[derive(Debug, Clone)]
pub struct Stay(Weak<Open>);

impl Stay {
    /// The caller may call.
    pub fn grant(&self) {
        if let Some(open) = self.0.upgrade()
            && !open.admitted.swap(true, Ordering::Relaxed)
        {
            lock(&open.activity.state).admitted += 1;
        }
    }
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                asked: false,
                open: 0,
                admitted: 0,
                idle_since: Instant::now(),
            }),
            evicted: CancellationToken::new(),
        })
    }

    pub(crate) fn begin(self: &Arc<Self>) -> Arc<Open> {
        let mut state = lock(&self.state);
        state.asked = true;
        state.open += 1;
        Arc::new(Open {
            activity: Arc::clone(self),
            admitted: AtomicBool::new(false),
        })
    }

    pub(crate) fn state(&self) -> State {
        *lock(&self.state)
    }
}

impl Open {
    pub(crate) fn stay(self: &Arc<Self>) -> Stay {
        Stay(Arc::downgrade(self))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = lock(&self.activity.state);
        state.open -= 1;
        state.admitted -= usize::from(*self.admitted.get_mut());
        state.idle_since = Instant::now();
    }
}

impl Room {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            max: limits.max_connections,
            max_per_address: limits.max_connections_per_address,
            inside: Mutex::default(),
        })
    }

    /// A place for a connection from an address, if need be that of another one.
    pub(crate) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        activity: &Arc<Activity>,
    ) -> Option<Place> {
        let mut inside = lock(&self.inside);
        let neighbours = inside.by_address.get(&address).copied().unwrap_or(0);
        if neighbours >= self.max_per_address {
            inside.evict(Some(address))?;
        } else if inside.connections.len() >= self.max {
            inside.evict(None)?;
        }
        let id = inside.next;
        inside.next += 1;
        inside
            .connections
            .insert(id, (address, Arc::clone(activity)));
        *inside.by_address.entry(address).or_default() += 1;
        Some(Place {
            room: Arc::clone(self),
            id,
        })
    }
}

impl Inside {
    /// Sends away the connection that is missed least; `None` if every one is busy.
    fn evict(&mut self, from: Option<IpAddr>) -> Option<()> {
        let may_go = self.connections.iter().filter_map(|(id, (address, a))| {
            let state = a.state();
            let may_go = state.admitted == 0 && from.is_none_or(|from| from == *address);
            may_go.then_some(((state.open > 0, state.asked, state.idle_since), *id))
        });
        let (_, id) = may_go.min()?;
        let activity = self.remove(id)?;
        activity.evicted.cancel();
        Some(())
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Activity>> {
        let (address, activity) = self.connections.remove(&id)?;
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
        Some(activity)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.room.inside).remove(self.id);
    }
}

/// What is behind these locks is complete after every statement, so a panic leaves nothing broken.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(max: usize, max_per_address: usize) -> Arc<Room> {
        Room::new(&Limits {
            max_connections: max,
            max_connections_per_address: max_per_address,
            ..Limits::default()
        })
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn strangers_go_before_callers_and_callers_before_nobody() {
        let room = room(3, 3);
        let [caller, stranger, busy, late] = std::array::from_fn(|_| Activity::new());
        drop(caller.begin());
        let open = busy.begin();
        let mut places: Vec<_> = [&caller, &stranger, &busy]
            .map(|activity| room.enter(address(1), activity).unwrap())
            .into();
        places.push(room.enter(address(2), &late).unwrap());
        assert!(stranger.evicted.is_cancelled());
        let later = Activity::new();
        places.push(room.enter(address(2), &later).unwrap());
        assert!(late.evicted.is_cancelled() && !caller.evicted.is_cancelled());
        let open = [open, caller.begin(), later.begin()];
        open.iter().for_each(|open| open.stay().grant());
        assert!(room.enter(address(3), &Activity::new()).is_none());
        drop(open);
        assert!(room.enter(address(3), &Activity::new()).is_some());
    }

    #[test]
    fn whose_requests_are_strangers_goes_when_nobody_is_idle() {
        let room = room(2, 2);
        let [watcher, idle] = std::array::from_fn(|_| Activity::new());
        let watch = watcher.begin();
        let _watcher = room.enter(address(1), &watcher).unwrap();
        let _idle = room.enter(address(1), &idle).unwrap();
        let caller = Activity::new();
        let call = caller.begin();
        call.stay().grant();
        let _caller = room.enter(address(2), &caller).unwrap();
        assert!(idle.evicted.is_cancelled() && !watcher.evicted.is_cancelled());
        assert!(room.enter(address(3), &Activity::new()).is_some());
        assert!(watcher.evicted.is_cancelled() && !caller.evicted.is_cancelled());
        // Said twice, or of a request that is over, it counts once, or not at all.
        let stay = call.stay();
        stay.grant();
        drop((call, watch));
        stay.grant();
        assert_eq!(caller.state().admitted, 0);
    }

    #[test]
    fn an_address_takes_only_its_own_places() {
        let room = room(10, 1);
        let [first, second, other] = std::array::from_fn(|_| Activity::new());
        let _first = room.enter(address(1), &first).unwrap();
        let _other = room.enter(address(2), &other).unwrap();
        let second = room.enter(address(1), &second).unwrap();
        assert!(first.evicted.is_cancelled() && !other.evicted.is_cancelled());
        drop(second);
        assert_eq!(lock(&room.inside).by_address.len(), 1);
    }
}
