//! The walls by name, and what a policy may demand of them. What it is *not*: how they are raised, which is [`isolate`](super::isolate).

use std::fmt;

use serde::Deserialize;

/// How a model is walled in: `isolation` in its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// A process of its own; every wall of [`Isolation::Required`], and the namespaces, or it is not loaded.
    Strict,
    /// A process of its own; every wall that needs no privilege and no namespace, or it is not loaded. Namespaces where the kernel gives them.
    #[default]
    Required,
    /// A process of its own, with whatever walls the kernel gives.
    BestEffort,
    /// No process: the engine runs in the gateway's own, and a fault of its is the gateway's.
    Thread,
}

impl Isolation {
    /// The name in policies and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Required => "required",
            Self::BestEffort => "best-effort",
            Self::Thread => "thread",
        }
    }

    /// The walls without which nothing is loaded.
    #[must_use]
    pub const fn demanded(self) -> Walls {
        match self {
            Self::Strict => Walls(Walls::CORE.0 | Walls::NAMESPACES.0),
            Self::Required => Walls::CORE,
            Self::BestEffort | Self::Thread => Walls(0),
        }
    }
}

/// A set of walls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walls(u32);

impl Walls {
    /// Nothing is open but what the gateway handed over.
    pub const DESCRIPTORS: Self = Self(1);
    /// Bounds on memory, files and descriptors; no core file.
    pub const LIMITS: Self = Self(1 << 1);
    /// No program that it starts could gain a right.
    pub const NO_NEW_PRIVILEGES: Self = Self(1 << 2);
    /// It has no capability, as root either.
    pub const CAPABILITIES: Self = Self(1 << 3);
    /// Nobody of its own user may look into it.
    pub const UNDUMPABLE: Self = Self(1 << 4);
    /// The kernel kills it when the gateway is gone.
    pub const DIES_WITH_GATEWAY: Self = Self(1 << 5);
    /// No file but the system's libraries, and those for reading.
    pub const LANDLOCK: Self = Self(1 << 6);
    /// Landlock's own wall against TCP (Linux 6.7); seccomp stands before it.
    pub const LANDLOCK_TCP: Self = Self(1 << 7);
    /// Landlock's own wall against signals and abstract sockets of others (Linux 6.12); seccomp stands before it.
    pub const LANDLOCK_SCOPES: Self = Self(1 << 8);
    /// Two dozen system calls; any other kills it.
    pub const SECCOMP: Self = Self(1 << 9);
    /// A user namespace of its own.
    pub const USER_NAMESPACE: Self = Self(1 << 10);
    /// A network of its own, without as much as a loopback that is up.
    pub const NETWORK_NAMESPACE: Self = Self(1 << 11);
    /// System V and POSIX queues and memory of its own.
    pub const IPC_NAMESPACE: Self = Self(1 << 12);

    /// Those that need no privilege, and hold in an ordinary container.
    pub const CORE: Self = Self(
        Self::DESCRIPTORS.0
            | Self::LIMITS.0
            | Self::NO_NEW_PRIVILEGES.0
            | Self::CAPABILITIES.0
            | Self::UNDUMPABLE.0
            | Self::DIES_WITH_GATEWAY.0
            | Self::LANDLOCK.0
            | Self::SECCOMP.0,
    );

    /// Those that many distributions and containers do not give.
    pub const NAMESPACES: Self = Self(Self::USER_NAMESPACE.0 | Self::NETWORK_NAMESPACE.0 | Self::IPC_NAMESPACE.0);

    /// Every wall, with its name in logs.
    pub const ALL: [(Self, &'static str); 13] = [
        (Self::DESCRIPTORS, "descriptors"),
        (Self::LIMITS, "limits"),
        (Self::NO_NEW_PRIVILEGES, "no-new-privileges"),
        (Self::CAPABILITIES, "capabilities"),
        (Self::UNDUMPABLE, "undumpable"),
        (Self::DIES_WITH_GATEWAY, "dies-with-gateway"),
        (Self::LANDLOCK, "landlock"),
        (Self::LANDLOCK_TCP, "landlock-tcp"),
        (Self::LANDLOCK_SCOPES, "landlock-scopes"),
        (Self::SECCOMP, "seccomp"),
        (Self::USER_NAMESPACE, "user-namespace"),
        (Self::NETWORK_NAMESPACE, "network-namespace"),
        (Self::IPC_NAMESPACE, "ipc-namespace"),
    ];

    /// All of them.
    #[must_use]
    pub fn every() -> Self {
        Self::ALL.iter().fold(Self(0), |every, (wall, _)| every.with(*wall))
    }

    /// As it goes over the wire.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// As it came over the wire; `None` with a bit that is no wall.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        Self(bits).without(Self::every()).is_empty().then_some(Self(bits))
    }

    /// Those of `self` that are not in `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().filter(move |(wall, _)| self.0 & wall.0 != 0).map(|(_, name)| name)
    }

    /// Both together.
    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Adds `wall` if it was `raised`.
    pub(super) fn add(&mut self, wall: Self, raised: bool) {
        if raised {
            self.0 |= wall.0;
        }
    }
}

impl fmt::Display for Walls {
    /// `landlock, seccomp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.names().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wall_has_a_bit_of_its_own_and_a_name() {
        let mut all = 0;
        for (wall, _) in Walls::ALL {
            assert_eq!(wall.0.count_ones(), 1);
            assert_eq!(all & wall.0, 0);
            all |= wall.0;
        }
        assert_eq!(Walls::from_bits(all), Some(Walls(all)));
        assert_eq!(Walls::from_bits(all + 1), None);
        assert_eq!(Walls(Walls::LANDLOCK.0 | Walls::SECCOMP.0).to_string(), "landlock, seccomp");
    }

    #[test]
    fn each_level_demands_what_the_one_below_it_does() {
        assert!(Isolation::Thread.demanded().is_empty());
        assert!(Isolation::BestEffort.demanded().is_empty());
        assert_eq!(Isolation::Required.demanded().without(Isolation::Strict.demanded()), Walls(0));
        assert_eq!(Isolation::Strict.demanded().without(Isolation::Required.demanded()), Walls::NAMESPACES);
    }
}
