//! An ONNX file, read through before the engine sees it: a strict, bounded walk over the protobuf that allocates nothing by declared sizes.
//!
//! It is a closed schema, the one of ONNX 1.23 (IR version 13): a field that is not in it, or a single field that is written twice, is
//! refused, so that no other parser can understand the same bytes otherwise. What it is *not*: a checker of the graph's meaning. The
//! engine does that, and a run on zeros shows that it could.
//!
//! Refused on principle: data outside the file that were not verified with it, operators of other domains than ONNX's own, sparse tensors (they become dense when they
//! are loaded, so a few bytes may ask for any amount of memory), functions of the model's own (they expand when they are loaded, to any
//! size), training graphs, and configuration for several devices.

use std::collections::{BTreeMap, HashSet};

mod external;
mod fault;
mod protobuf;

use super::Signature;
use crate::wire::tensor::{Datatype, Port};

use external::External;
pub use external::{Needed, suffices};
pub use fault::Fault;
use protobuf::message;

/// The operator domains that are allowed. scikit-learn's models need `ai.onnx.ml`; `""` and `ai.onnx` are the same one.
const DOMAINS: [&[u8]; 3] = [b"", b"ai.onnx", b"ai.onnx.ml"];

/// The key by which a model would set options of its own session (`ORT_LOAD_CONFIG_FROM_MODEL`).
const SESSION_OPTIONS: &[u8] = b"ort_config";

/// What a file may hold at most. Everything counts across all nested graphs.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nodes.
    pub nodes: usize,
    /// Tensors: initializers and attributes.
    pub tensors: usize,
    /// Inputs and outputs each.
    pub ports: usize,
    /// Graphs in graphs; 1 is a model without any. Types in types, too.
    pub nesting: usize,
    /// Dimensions of a tensor.
    pub rank: usize,
    /// Length of one dimension.
    pub dimension: u64,
    /// Elements of one tensor.
    pub elements: u64,
}

impl Limits {
    /// The default: several times what published models of 2 GiB, protobuf's own bound, have.
    pub const DEFAULT: Self =
        Self { nodes: 100_000, tensors: 100_000, ports: 256, nesting: 8, rank: 16, dimension: (1 << 31) - 1, elements: 1 << 31 };
}

/// Reads the file through.
///
/// # Errors
/// The first [`Fault`]. It takes time in proportion to the length of `bytes`.
pub fn read(bytes: &[u8], limits: &Limits) -> Result<Signature, Fault> {
    read_beside(bytes, limits, &Beside::new()).map(|(signature, _)| signature)
}

/// Files beside the model in which its tensors may lie, by their names, with their lengths in bytes. All of them are verified.
pub type Beside = BTreeMap<String, u64>;

/// The same, where initializers of the graph may have their data in files `beside` it; with the names of those that have.
///
/// # Errors
/// The first [`Fault`].
pub fn read_beside(bytes: &[u8], limits: &Limits, beside: &Beside) -> Result<(Signature, Needed), Fault> {
    let (signature, needed) = read_apart(bytes, limits)?;
    suffices(&needed, beside)?;
    Ok((signature, needed))
}

/// The same, before it is known which files there are: what is needed of them is for [`suffices`], and no model is loaded without.
///
/// # Errors
/// The first [`Fault`].
pub fn read_apart(bytes: &[u8], limits: &Limits) -> Result<(Signature, Needed), Fault> {
    let mut walk = Walk { limits, nodes: 0, tensors: 0, needed: Needed::new() };
    let signature = walk.model(bytes)?;
    Ok((signature, walk.needed))
}

/// A name from the file, fit to be shown.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(64).collect()
}

struct Walk<'l> {
    limits: &'l Limits,
    nodes: usize,
    tensors: usize,
    /// Files beside the model that its tensors lie in.
    needed: Needed,
}

impl Walk<'_> {
    fn model(&mut self, bytes: &[u8]) -> Result<Signature, Fault> {
        let mut ir_version = false;
        let mut opset = false;
        let mut graph = None;
        message("ModelProto", bytes, &[8, 14, 20, 25, 26], |number, value| {
            match number {
                1 => ir_version = value.varint()? > 0,
                2 | 3 | 4 | 6 => drop(value.bytes()?),
                5 => drop(value.varint()?),
                7 => graph = Some(self.graph(value.bytes()?, 1, true)?),
                8 => {
                    self.opset(value.bytes()?)?;
                    opset = true;
                }
                14 => self.metadata(value.bytes()?)?,
                20 => return Err(Fault::Training),
                25 => return Err(Fault::Functions),
                26 => return Err(Fault::Devices),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if !ir_version || !opset {
            return Err(Fault::NotOnnx("it names no version"));
        }
        graph.ok_or(Fault::NotOnnx("it has no graph"))
    }

    /// `ports` asks for the graph's inputs and outputs; those of nested graphs are nobody's business.
    fn graph(&mut self, bytes: &[u8], depth: usize, ports: bool) -> Result<Signature, Fault> {
        if depth > self.limits.nesting {
            return Err(Fault::Past { what: "graphs nested in graphs", limit: self.limits.nesting as u64 });
        }
        let (mut inputs, mut outputs, mut initializers) = (Vec::new(), Vec::new(), HashSet::new());
        message("GraphProto", bytes, &[1, 5, 11, 12, 13, 14, 15, 16], |number, value| {
            match number {
                1 => self.node(value.bytes()?, depth)?,
                2 | 10 => drop(value.bytes()?),
                5 => {
                    let name = self.tensor(value.bytes()?, ports)?;
                    if ports {
                        initializers.insert(name);
                    }
                }
                11 | 12 => {
                    let to = if number == 11 { &mut inputs } else { &mut outputs };
                    let value = self.value_info(value.bytes()?)?;
                    if ports {
                        to.push(value);
                    }
                }
                13 => drop(self.value_info(value.bytes()?)?),
                14 => self.annotation(value.bytes()?)?,
                15 => return Err(Fault::Sparse),
                16 => self.metadata(value.bytes()?)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        // Before IR version 4 initializers had to be listed as inputs too.
        inputs.retain(|(name, _)| !initializers.contains(name));
        let mut leads = inputs.iter().filter_map(|(_, kind)| if let Type::Tensor { lead, .. } = kind { *lead } else { None });
        let apart = leads.next().is_some_and(|first| leads.any(|other| other != first));
        Ok(Signature { inputs: self.ports(inputs)?, instead: Vec::new(), outputs: self.ports(outputs)?, longest: None, apart })
    }

    fn ports(&self, found: Vec<(&[u8], Type<'_>)>) -> Result<Vec<Port>, Fault> {
        if found.len() > self.limits.ports {
            return Err(Fault::Past { what: "inputs or outputs", limit: self.limits.ports as u64 });
        }
        let mut names = HashSet::new();
        found
            .into_iter()
            .map(|(name, kind)| {
                let refuse = |why| Fault::Port { name: shown(name), why };
                let text = std::str::from_utf8(name).ok().filter(|text| (1..=256).contains(&text.len()) && !text.contains('\0'));
                let text = text.ok_or_else(|| refuse("has no name of 1 to 256 bytes of UTF-8"))?;
                if !names.insert(text) {
                    return Err(refuse("is named twice"));
                }
                let Type::Tensor { element, shape, .. } = kind else {
                    return Err(refuse("is not a tensor. For scikit-learn's classifiers, export with options={'zipmap': False}"));
                };
                let datatype = datatype(element).ok_or_else(|| refuse("has elements that the Open Inference Protocol does not know"))?;
                let shape = shape.ok_or_else(|| refuse("has no shape. Run onnx.shape_inference.infer_shapes, or export it with one"))?;
                Ok(Port { name: text.to_owned(), datatype, shape })
            })
            .collect()
    }

    fn opset(&self, bytes: &[u8]) -> Result<(), Fault> {
        message("OperatorSetIdProto", bytes, &[], |number, value| {
            match number {
                1 => allowed(value.bytes()?)?,
                2 => drop(value.varint()?),
                _ => return Ok(false),
            }
            Ok(true)
        })
    }

    fn node(&mut self, bytes: &[u8], depth: usize) -> Result<(), Fault> {
        self.nodes += 1;
        if self.nodes > self.limits.nodes {
            return Err(Fault::Past { what: "nodes", limit: self.limits.nodes as u64 });
        }
        let (mut normalises, mut portable) = (false, false);
        message("NodeProto", bytes, &[1, 2, 5, 9, 10], |number, value| {
            match number {
                4 => normalises = value.bytes()? == b"StringNormalizer",
                1..=3 | 6 | 8 => drop(value.bytes()?),
                5 => portable |= self.attribute(value.bytes()?, depth)? == (&b"locale"[..], &b"C"[..]),
                7 => allowed(value.bytes()?)?,
                9 => self.metadata(value.bytes()?)?,
                10 => return Err(Fault::Devices),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if normalises && !portable { Err(Fault::Locale) } else { Ok(()) }
    }

    /// Answers with its name, and its text where it has one.
    fn attribute<'a>(&mut self, bytes: &'a [u8], depth: usize) -> Result<(&'a [u8], &'a [u8]), Fault> {
        let (mut name, mut text): (&[u8], &[u8]) = (b"", b"");
        message("AttributeProto", bytes, &[7, 8, 9, 10, 11, 15, 23], |number, value| {
            match number {
                1 => name = value.bytes()?,
                4 => text = value.bytes()?,
                9 | 13 | 21 => drop(value.bytes()?),
                2 => value.fixed32()?,
                3 | 20 => drop(value.varint()?),
                5 | 10 => drop(self.tensor(value.bytes()?, false)?),
                6 | 11 => drop(self.graph(value.bytes()?, depth + 1, false)?),
                7 => drop(value.fixed(4)?),
                8 => value.each(|_| Ok(()))?,
                14 | 15 => drop(self.kind(value.bytes()?, 1)?),
                22 | 23 => return Err(Fault::Sparse),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok((name, text))
    }

    /// Answers with the tensor's name. `initializer` says whether it is one of the outermost graph: those alone may have their data elsewhere.
    fn tensor<'a>(&mut self, bytes: &'a [u8], initializer: bool) -> Result<&'a [u8], Fault> {
        self.tensors += 1;
        if self.tensors > self.limits.tensors {
            return Err(Fault::Past { what: "tensors", limit: self.limits.tensors as u64 });
        }
        let mut shape = Shape::new(self.limits);
        let (mut name, mut element, mut raw): (&[u8], _, _) = (b"", 0, None);
        // How many numbers each of the typed fields holds, by field number.
        let mut typed = [0_u64; 12];
        let (mut external, mut elsewhere, mut placed) = (External::default(), false, false);
        message("TensorProto", bytes, &[1, 4, 5, 6, 7, 10, 11, 13, 16], |number, value| {
            match number {
                1 => value.each(|dimension| shape.add(dimension))?,
                2 => element = value.varint()?,
                3 => return Err(Fault::Segment),
                4 => typed[4] += value.fixed(4)?,
                5 | 7 | 11 => {
                    let mut count = 0;
                    value.each(|_| {
                        count += 1;
                        Ok(())
                    })?;
                    typed[number as usize] += count;
                }
                6 => {
                    value.bytes()?;
                    typed[6] += 1;
                }
                8 => name = value.bytes()?,
                9 => raw = Some(value.bytes()?),
                10 => typed[10] += value.fixed(8)?,
                12 => drop(value.bytes()?),
                13 => {
                    external.add(value.bytes()?)?;
                    placed = true;
                }
                // 0 is "in this file". Whatever else stands there is not.
                14 => match value.varint()? {
                    0 => {}
                    1 => elsewhere = true,
                    _ => return Err(Fault::ExternalData),
                },
                16 => self.metadata(value.bytes()?)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let (bits, field) = storage(element).ok_or(Fault::DataType(element))?;
        let elements = shape.elements;
        if elsewhere || placed {
            let inside = raw.is_some() || typed.iter().any(|count| *count > 0);
            if !initializer || !elsewhere || inside || element == STRING {
                return Err(Fault::ExternalData);
            }
            // The walk sees no byte of it: what must be 0 or 1 stays in the file.
            if element == BOOL {
                return Err(Fault::NotABool);
            }
            external.note((elements * bits).div_ceil(8), &mut self.needed)?;
            return Ok(name);
        }
        let others = typed.iter().enumerate().any(|(number, count)| *count > 0 && (raw.is_some() || Some(number) != field));
        let right = match (raw, field) {
            (Some(raw), _) => element != STRING && raw.len() as u64 == (elements * bits).div_ceil(8),
            (None, Some(field)) => typed[field] == elements,
            (None, None) => elements == 0,
        };
        if others || !right {
            return Err(Fault::DataLength);
        }
        if element == BOOL && raw.is_some_and(|raw| raw.iter().any(|byte| *byte > 1)) {
            return Err(Fault::NotABool);
        }
        Ok(name)
    }

    fn value_info<'a>(&self, bytes: &'a [u8]) -> Result<(&'a [u8], Type<'a>), Fault> {
        let (mut name, mut kind): (&[u8], _) = (b"", Type::Other);
        message("ValueInfoProto", bytes, &[4], |number, value| {
            match number {
                1 => name = value.bytes()?,
                2 => kind = self.kind(value.bytes()?, 1)?,
                3 => drop(value.bytes()?),
                4 => self.metadata(value.bytes()?)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok((name, kind))
    }

    /// A `TypeProto`. Tensors are told apart; of sequences, maps, optional, sparse and opaque types only the bounds are held.
    fn kind<'a>(&self, bytes: &'a [u8], depth: usize) -> Result<Type<'a>, Fault> {
        if depth > self.limits.nesting {
            return Err(Fault::Past { what: "types nested in types", limit: self.limits.nesting as u64 });
        }
        let mut kind = Type::Other;
        let mut alternatives = 0;
        message("TypeProto", bytes, &[], |number, value| {
            alternatives += usize::from(number != 6);
            match number {
                1 => kind = self.tensor_type("TypeProto.Tensor", value.bytes()?)?,
                8 => drop(self.tensor_type("TypeProto.SparseTensor", value.bytes()?)?),
                4 | 5 | 9 => message("TypeProto.Sequence, Map or Optional", value.bytes()?, &[], |inner, value| {
                    match (number, inner) {
                        (5, 1) => drop(value.varint()?),
                        (4 | 9, 1) | (5, 2) => drop(self.kind(value.bytes()?, depth + 1)?),
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?,
                6 => drop(value.bytes()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if alternatives > 1 {
            return Err(Fault::NotOnnx("a type is of two kinds at once"));
        }
        Ok(kind)
    }

    fn tensor_type<'a>(&self, name: &'static str, bytes: &'a [u8]) -> Result<Type<'a>, Fault> {
        let (mut element, mut shape, mut lead) = (0, None, None);
        message(name, bytes, &[], |number, value| {
            match number {
                1 => element = value.varint()?,
                2 => {
                    let (dimensions, named) = self.shape(value.bytes()?)?;
                    (shape, lead) = (Some(dimensions), named);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(Type::Tensor { element, shape, lead })
    }

    /// The dimensions, and what the first is called where it is free and has a name.
    fn shape<'a>(&self, bytes: &'a [u8]) -> Result<(Dimensions, Option<&'a [u8]>), Fault> {
        let mut known = Shape::new(self.limits);
        let (mut dimensions, mut lead) = (Vec::new(), None);
        message("TensorShapeProto", bytes, &[1], |number, value| {
            if number != 1 {
                return Ok(false);
            }
            let (mut length, mut name) = (None, None);
            let mut alternatives = 0;
            message("TensorShapeProto.Dimension", value.bytes()?, &[], |number, value| {
                match number {
                    1 => length = Some(value.varint()?),
                    2 => name = Some(value.bytes()?).filter(|name| !name.is_empty()),
                    3 => drop(value.bytes()?),
                    _ => return Ok(false),
                }
                alternatives += usize::from(number != 3);
                Ok(true)
            })?;
            if alternatives > 1 {
                return Err(Fault::NotOnnx("a dimension is fixed and free at once"));
            }
            known.add(length.unwrap_or(1))?;
            if dimensions.is_empty() {
                lead = name;
            }
            dimensions.push(length);
            Ok(true)
        })?;
        Ok((dimensions, lead))
    }

    fn annotation(&self, bytes: &[u8]) -> Result<(), Fault> {
        message("TensorAnnotation", bytes, &[2], |number, value| {
            match number {
                1 => drop(value.bytes()?),
                2 => self.metadata(value.bytes()?)?,
                _ => return Ok(false),
            }
            Ok(true)
        })
    }

    /// A `StringStringEntryProto`.
    fn metadata(&self, bytes: &[u8]) -> Result<(), Fault> {
        message("StringStringEntryProto", bytes, &[], |number, value| match number {
            1 if value.bytes()? == SESSION_OPTIONS => Err(Fault::SessionOptions),
            1 | 2 => value.bytes().map(|_| true),
            _ => Ok(false),
        })
    }
}

/// None where any length is taken.
type Dimensions = Vec<Option<u64>>;

enum Type<'a> {
    /// `lead` is what the first dimension is called, where it is free and has a name.
    Tensor {
        element: u64,
        shape: Option<Vec<Option<u64>>>,
        lead: Option<&'a [u8]>,
    },
    Other,
}

/// Dimensions as they come: none is kept, so that a list of a million costs nothing.
struct Shape<'l> {
    limits: &'l Limits,
    rank: usize,
    elements: u64,
}

impl<'l> Shape<'l> {
    fn new(limits: &'l Limits) -> Self {
        Self { limits, rank: 0, elements: 1 }
    }

    /// `dimension` is an int64 as protobuf writes it: a negative one has the highest bit.
    fn add(&mut self, dimension: u64) -> Result<(), Fault> {
        self.rank += 1;
        if self.rank > self.limits.rank {
            return Err(Fault::Past { what: "a tensor with dimensions", limit: self.limits.rank as u64 });
        }
        if dimension > i64::MAX as u64 {
            return Err(Fault::NegativeDimension);
        }
        if dimension > self.limits.dimension {
            return Err(Fault::Past { what: "a dimension", limit: self.limits.dimension });
        }
        let elements = self.elements.checked_mul(dimension).filter(|elements| *elements <= self.limits.elements);
        self.elements = elements.ok_or(Fault::Past { what: "a tensor with elements", limit: self.limits.elements })?;
        Ok(())
    }
}

fn allowed(domain: &[u8]) -> Result<(), Fault> {
    if DOMAINS.contains(&domain) { Ok(()) } else { Err(Fault::Domain(shown(domain))) }
}

const STRING: u64 = 8;
const BOOL: u64 = 9;

/// Bits of one element, and the typed field that may hold the elements instead of `raw_data`: `TensorProto.DataType`.
fn storage(element: u64) -> Option<(u64, Option<usize>)> {
    Some(match element {
        1 => (32, Some(4)),
        2 | 3 | 9 => (8, Some(5)),
        4 | 5 | 10 | 16 => (16, Some(5)),
        6 => (32, Some(5)),
        7 => (64, Some(7)),
        STRING => (0, Some(6)),
        11 => (64, Some(10)),
        12 => (32, Some(11)),
        13 => (64, Some(11)),
        // Complex, 8-bit floats, and what is packed below a byte: as raw data only.
        14 => (64, None),
        15 => (128, None),
        17..=20 | 24 => (8, None),
        21..=23 => (4, None),
        25 | 26 => (2, None),
        _ => return None,
    })
}

/// The protocol's name for a `TensorProto.DataType`.
fn datatype(element: u64) -> Option<Datatype> {
    Some(match element {
        1 => Datatype::Fp32,
        2 => Datatype::Uint8,
        3 => Datatype::Int8,
        4 => Datatype::Uint16,
        5 => Datatype::Int16,
        6 => Datatype::Int32,
        7 => Datatype::Int64,
        STRING => Datatype::Bytes,
        BOOL => Datatype::Bool,
        10 => Datatype::Fp16,
        11 => Datatype::Fp64,
        12 => Datatype::Uint32,
        13 => Datatype::Uint64,
        16 => Datatype::Bf16,
        _ => return None,
    })
}

#[cfg(test)]
pub(in crate::infer::model) mod tests;
