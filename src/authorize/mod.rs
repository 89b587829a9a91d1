//! The third stop: what is asked of which model, and whether this caller may.
//!
//! Its value is the [`Grant`]: the matched route, the named model and the terms of every later stop.
//! The route that was judged is the route that is dispatched.

use std::sync::Arc;

use bytes::Bytes;

use crate::authenticate::Caller;
use crate::trail::Which;
use crate::wire::Body;

pub mod target;

pub use target::{Action, OipAsks, Route};

/// The body, read for the model's name or still on the socket.
#[derive(Debug)]
pub enum Content {
    /// Not read yet.
    Unread(Body),
    /// Read to its end within the global cap and deadline, and parsed by the one strict parse where the route carries JSON.
    Read(Bytes, Option<serde_json::Value>),
}

/// A caller who may do this, with the terms under which.
#[derive(Debug)]
pub struct Grant<T = ()> {
    caller: Caller,
    route: Arc<Route>,
    action: Action,
    which: Option<Arc<Which>>,
    visible: Vec<Arc<Which>>,
    content: Content,
    terms: Arc<T>,
}

impl<T> Grant<T> {
    /// Who asks.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The matched route.
    #[must_use]
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// What is asked.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// The model; none for lists, server metadata and receipts.
    #[must_use]
    pub fn which(&self) -> Option<&Arc<Which>> {
        self.which.as_ref()
    }

    /// The models of which this caller may see metadata; filled for lists alone.
    #[must_use]
    pub fn visible(&self) -> &[Arc<Which>] {
        &self.visible
    }

    /// The body, as far as it was read.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Takes the body out, which leaves an empty one.
    pub fn take_content(&mut self) -> Content {
        std::mem::replace(&mut self.content, Content::Unread(Body::Empty))
    }

    /// The terms of the later stops.
    #[must_use]
    pub fn terms(&self) -> &Arc<T> {
        &self.terms
    }

    /// The grant without its terms, for the values that are built on it.
    #[must_use]
    pub fn without_terms(self) -> Grant {
        let Self { caller, route, action, which, visible, content, terms: _ } = self;
        Grant { caller, route, action, which, visible, content, terms: Arc::new(()) }
    }
}
