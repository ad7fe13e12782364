//! A node's way to being a manager and back, while it is a member and its tasks run on.
//!
//! The leader says what the node is to be, and the certificate that it gives decides: a manager's
//! comes with a number for the group, a worker's says that the node is out of it. On the disk the
//! certificate is first, then the record, then the store. So a crash at any step leaves what the
//! next daemon goes on from, and a store that may have voted is never used under another number,
//! nor an empty one under a number that may have voted.

use shoal_model::spec::node::NodeRole;

/// What a node has of a manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// Nothing: it is a worker.
    Nothing,
    /// A number in the group, by its record. No store of it has been reached by anybody yet.
    Number(u64),
    /// A manager that runs, with this number.
    Manager(u64),
    /// Files of a store that counts for nothing any more.
    Leftovers,
}

/// What the leader says a node is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A worker. It is in no group.
    Worker,
    /// A manager; with its number, if it was given one.
    Manager(Option<u64>),
}

/// What the owner is doing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Nothing.
    Nothing,
    /// The leader is asked for a certificate.
    Certifying(NodeRole),
    /// The store and the manager begin.
    Opening,
    /// They end, and the record forgets them.
    Closing,
    /// The store's files are removed.
    Sweeping,
    /// Something failed; it is tried again after a pause.
    Pausing,
}

/// A node's role, and what is being done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    has: Has,
    /// What its certificate says.
    certificate: NodeRole,
    wish: Option<Wish>,
    /// It is no member any more, by the word of a leader.
    removed: bool,
    doing: Doing,
}

/// What happens: the leader's word, and outcomes of effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The leader says what this node is to be.
    Told(Wish),
    /// The leader says that it is no member any more.
    Removed,
    /// A certificate came, and is on the disk. Its role, and the number that came with it.
    Certified(NodeRole, Option<u64>),
    /// None came.
    CertifyFailed,
    /// The manager runs; that its store has begun is on the disk.
    Opened,
    /// It does not.
    OpenFailed,
    /// No manager runs, and the record says so.
    Closed,
    /// No manager runs; the record could not be written.
    CloseFailed,
    /// Nothing is left of the store.
    Swept,
    /// Something is.
    SweepFailed,
    /// A pause is over.
    Retry,
    /// What was being done has been given up: it is another command's turn.
    Interrupted,
}

/// What the owner has to do. Each comes back as an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the leader for a certificate, as this, and keep it.
    Certify(NodeRole),
    /// Write the record of a manager with this number, make its store, and begin.
    Open(u64),
    /// End the manager and its store, if they run; write the record of a worker.
    Close,
    /// Remove the store's files.
    Sweep,
    /// Come back with [`Event::Retry`] after a pause.
    Wait,
}

impl Role {
    /// The first state after an opening, by what is on the disk, and what has to be done first.
    #[must_use]
    pub fn begin(has: Has, certificate: NodeRole) -> (Self, Option<Effect>) {
        let role = Self { has, certificate, wish: None, removed: false, doing: Doing::Nothing };
        role.decide()
    }

    /// What the node has.
    #[must_use]
    pub const fn has(&self) -> Has {
        self.has
    }

    /// What is being done.
    #[must_use]
    pub const fn doing(&self) -> Doing {
        self.doing
    }

    /// Whether what is under way must come to its end before anything else begins: it holds the
    /// store.
    #[must_use]
    pub const fn holds_store(&self) -> bool {
        matches!(self.doing, Doing::Opening | Doing::Closing | Doing::Sweeping)
    }

    /// Whether everything is as it was last wished.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        matches!(self.doing, Doing::Nothing)
    }

    /// The state after `event`, and what has to be done. An outcome that belongs to nothing under
    /// way changes nothing.
    #[must_use]
    pub fn step(mut self, event: Event) -> (Self, Option<Effect>) {
        match (event, self.doing) {
            (Event::Told(wish), _) => {
                self.wish = Some(wish);
                self.removed = false;
            }
            (Event::Removed, _) => self.removed = true,
            (Event::Interrupted, Doing::Certifying(_) | Doing::Pausing) => {
                self.doing = Doing::Nothing;
                // Whoever interrupts says when to go on.
                return (self, None);
            }
            (Event::Certified(role, number), Doing::Certifying(asked)) => {
                return self.certified(asked, role, number);
            }
            (Event::CertifyFailed, Doing::Certifying(_)) => return self.pause(),
            (Event::Opened, Doing::Opening) => {
                if let Has::Number(number) = self.has {
                    self.has = Has::Manager(number);
                }
                self.doing = Doing::Nothing;
            }
            (Event::OpenFailed, Doing::Opening) => return self.pause(),
            (Event::Closed, Doing::Closing) => {
                self.has = Has::Leftovers;
                self.doing = Doing::Nothing;
            }
            (Event::CloseFailed, Doing::Closing) => return self.pause(),
            (Event::Swept, Doing::Sweeping) => {
                self.has = Has::Nothing;
                self.doing = Doing::Nothing;
            }
            (Event::SweepFailed, Doing::Sweeping) => return self.pause(),
            (Event::Retry, Doing::Pausing) => self.doing = Doing::Nothing,
            _ => {}
        }
        self.decide()
    }

    fn pause(mut self) -> (Self, Option<Effect>) {
        self.doing = Doing::Pausing;
        (self, Some(Effect::Wait))
    }

    fn certified(
        mut self,
        asked: NodeRole,
        given: NodeRole,
        number: Option<u64>,
    ) -> (Self, Option<Effect>) {
        self.certificate = given;
        self.doing = Doing::Nothing;
        match (self.has, given, number) {
            (Has::Nothing, NodeRole::Manager, Some(number)) => {
                self.has = Has::Number(number);
                self.wish = Some(Wish::Manager(Some(number)));
            }
            // It is this manager's own: what it was told is over.
            (Has::Manager(own), NodeRole::Manager, Some(number)) if own == number => {
                self.wish = Some(Wish::Manager(Some(number)));
            }
            // A leader that says no numbers decides nothing.
            (_, NodeRole::Manager, None) => return self.pause(),
            // Out of the group for good, under this number.
            (Has::Manager(_), ..) => {
                self.doing = Doing::Closing;
                return (self, Some(Effect::Close));
            }
            // The leader has another mind than the one that was heard; its word comes.
            _ if given != asked => return self.pause(),
            _ => {}
        }
        self.decide()
    }

    /// What has to be done now, if nothing is under way.
    fn decide(mut self) -> (Self, Option<Effect>) {
        use NodeRole::{Manager, Worker};
        if self.doing != Doing::Nothing {
            return (self, None);
        }
        let (doing, effect) = match (self.has, self.wish) {
            (Has::Leftovers, _) => (Doing::Sweeping, Effect::Sweep),
            (Has::Manager(_) | Has::Number(_), _) if self.removed => {
                (Doing::Closing, Effect::Close)
            }
            _ if self.removed => return (self, None),
            (Has::Nothing, Some(Wish::Manager(_))) => {
                (Doing::Certifying(Manager), Effect::Certify(Manager))
            }
            // A promotion that was taken back.
            (Has::Nothing, Some(Wish::Worker)) if self.certificate == Manager => {
                (Doing::Certifying(Worker), Effect::Certify(Worker))
            }
            (Has::Nothing, _) => return (self, None),
            (Has::Number(own), None) => (Doing::Opening, Effect::Open(own)),
            (Has::Number(own), Some(Wish::Manager(Some(number)))) if own == number => {
                (Doing::Opening, Effect::Open(own))
            }
            // Nobody has reached a store with this number, and nobody will.
            (Has::Number(_), Some(_)) => (Doing::Closing, Effect::Close),
            (Has::Manager(_), None) => return (self, None),
            (Has::Manager(own), Some(Wish::Manager(Some(number)))) if own == number => {
                return (self, None);
            }
            // The word of one leader is no proof that the group has let go: the certificate is.
            (Has::Manager(_), Some(_)) => (Doing::Certifying(Worker), Effect::Certify(Worker)),
        };
        self.doing = doing;
        (self, Some(effect))
    }
}
