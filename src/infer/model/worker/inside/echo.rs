//! A worker whose engine gives its inputs back, for tests and fuzzing. What it hears is read by the code of every worker.

use super::*;
use crate::wire::tensor::{Datatype, Port};

struct Echo(Signature);

impl Engine for Echo {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn run(&mut self, inputs: &[Tensor], wanted: &[usize], stop: &Stop) -> Result<Vec<Tensor>, Error> {
        if stop.is_stopped() {
            return Err(Error::ModelFailed("stopped".into()));
        }
        Ok(wanted.iter().map(|place| inputs[*place].clone()).collect())
    }
}

pub(super) fn echo() -> Box<dyn Engine> {
    let ports = vec![Port { name: "x".into(), datatype: Datatype::Uint8, shape: vec![None] }];
    Box::new(Echo(Signature { inputs: ports.clone(), instead: vec![], outputs: ports, longest: None, apart: false }))
}

/// A greeting from whatever the socket gives: how many files it brings with their names.
pub(in super::super) fn hears(socket: UnixStream) -> Option<usize> {
    Hello::hear(&mut Wire::new(socket)).ok().map(|hello| hello.files.len())
}

/// Calls from whatever the socket gives; whether it ended between two of them.
pub(in super::super) fn serves(socket: UnixStream) -> bool {
    serve(&mut Wire::new(socket), echo(), &Current::default()).is_ok()
}
