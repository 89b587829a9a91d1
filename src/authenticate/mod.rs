//! The second stop: who calls.
//!
//! Its value is the [`Caller`]: a peer whose one credential held. There is no anonymous caller and no default.

use std::sync::Arc;

use crate::accept::Peer;
use crate::trail::Who;

/// What a verified credential says of its holder. Shared by all requests with that credential.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name, tenant, tier and method, as the logs write them.
    pub who: Arc<Who>,
    /// The roles.
    pub roles: Vec<Arc<str>>,
}

/// A peer whose credential held.
#[derive(Debug)]
pub struct Caller {
    peer: Peer,
    identity: Arc<Identity>,
}

impl Caller {
    /// The request.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The request, to take its body.
    pub fn peer_mut(&mut self) -> &mut Peer {
        &mut self.peer
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }
}
