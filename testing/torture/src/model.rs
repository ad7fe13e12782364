//! What a user knows of the things that it made, from the answers that it got.

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was acknowledged.
    Yes,
    /// The opposite was acknowledged.
    No,
    /// A request was cut, failed, or a disturbance came between.
    Unsure,
}

/// What a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A container.
    Container,
    /// A volume.
    Volume,
    /// A bridge network.
    Network,
    /// An image, made by an import.
    Image,
    /// A service.
    Service,
    /// A secret.
    Secret,
}

impl Kind {
    /// Where one of its things is removed by name.
    pub fn path(self, name: &str) -> String {
        match self {
            Self::Container => format!("/containers/{name}"),
            Self::Volume => format!("/volumes/{name}"),
            Self::Network => format!("/networks/{name}"),
            Self::Image => format!("/images/{name}"),
            Self::Service => format!("/services/{name}"),
            Self::Secret => format!("/secrets/{name}"),
        }
    }

    /// Where one of its things is looked at by name.
    pub fn inspect(self, name: &str) -> String {
        let path = self.path(name);
        if matches!(self, Self::Container | Self::Image) { path + "/json" } else { path }
    }
}

/// One name that one user uses, again and again, for one kind of thing.
#[derive(Clone, Debug)]
pub struct Slot {
    /// What it names.
    pub kind: Kind,
    /// The name.
    pub name: String,
    /// Whether there is such a thing.
    pub there: Known,
    /// Containers: whether it runs.
    pub runs: Known,
    /// Containers: its id, if it is known.
    pub id: String,
    /// Containers: its restart policy, if that was acknowledged.
    pub policy: &'static str,
    /// Services: how many tasks were asked for last.
    pub replicas: u64,
    /// Services: and that was acknowledged.
    pub sure_replicas: bool,
    /// A request was cut: the thing is left alone until the next comparison, because what the
    /// request began may still go on.
    pub rests: bool,
}

impl Slot {
    /// A name that nothing has yet.
    pub fn new(kind: Kind, name: String) -> Self {
        let (there, runs) = (Known::No, Known::No);
        Self {
            kind,
            name,
            there,
            runs,
            id: String::new(),
            policy: "",
            replicas: 0,
            sure_replicas: false,
            rests: false,
        }
    }

    /// Nothing is known any more.
    pub fn unsure(&mut self) {
        self.there = Known::Unsure;
        self.runs = Known::Unsure;
        self.sure_replicas = false;
        self.rests = true;
    }

    /// It was said to be gone.
    pub fn gone(&mut self) {
        self.there = Known::No;
        self.runs = Known::No;
        self.id.clear();
    }
}
