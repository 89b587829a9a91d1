//! Connections that the gateway itself opens.
