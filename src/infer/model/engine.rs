//! What every engine has in common.

use super::Error;
use crate::wire::tensor::{Port, Tensor};

/// What a model takes and gives, as its file says: its contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Inputs, without those that have a value in the file already.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
}

/// Whether `tensor` is one that `port` takes.
pub(super) fn fits(tensor: &Tensor, port: &Port) -> Result<(), Error> {
    let other = |why| Err(Error::CallerSentOtherInputs(why));
    if tensor.datatype != port.datatype {
        return other("an input is of another datatype than the model takes");
    }
    if !shapes_agree(&tensor.shape, &port.shape) {
        return other("an input is of another shape than the model takes");
    }
    match (tensor.elements(), tensor.datatype.width()) {
        (Some(elements), Some(width)) if elements.checked_mul(width) == Some(tensor.data.len()) => Ok(()),
        // Strings are counted as they are read.
        (Some(_), None) => Ok(()),
        _ => other("an input has more or less data than its shape says"),
    }
}

/// Whether `shape` is one of those that `port` stands for.
pub(super) fn shapes_agree(shape: &[u64], port: &[Option<u64>]) -> bool {
    shape.len() == port.len() && shape.iter().zip(port).all(|(length, wanted)| wanted.is_none_or(|wanted| wanted == *length))
}
