//! The walk over an ONNX file. What it accepts, a protobuf library reads with the same inputs and outputs, and nothing that is refused on
//! principle stands anywhere in it.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use portcullis::infer::model::onnx::{Beside, Limits, read, read_beside};
use portcullis::wire::tensor::{Datatype, Port};
use portcullis_fuzz::{file, seeds, within};
use prost::Message;

#[path = "onnx/proto.rs"]
mod proto;

use proto::{Dimension, Entry, Graph, Model, Node, OperatorSet, Shape, TensorProto, TensorType, Type, ValueInfo};

/// Small, so that each is met.
const LIMITS: Limits = Limits { nodes: 16, tensors: 16, ports: 4, nesting: 4, rank: 6, dimension: 1 << 20, elements: 1 << 24 };

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let beside = Beside::from([("w.bin".to_owned(), 64), ("tabular.weights".to_owned(), 1 << 20)]);
    // It allocates for names and shapes of ports, and for names of initializers.
    let room = 64 * data.len() + (1 << 16);
    let (signature, used) = match within(room, || read_beside(data, &LIMITS, &beside)) {
        Ok(read) => read,
        Err(fault) => return assert!(fault.to_string().len() < 2_000),
    };
    assert_eq!(read(data, &LIMITS).ok().as_ref(), used.is_empty().then_some(&signature));
    assert!(read(data, &Limits::DEFAULT).is_ok() || !used.is_empty());
    let model = Model::decode(data).expect("a protobuf library reads it");
    let graph = model.graph.as_ref().expect("a graph");
    assert!(model.opset_import.iter().all(|opset| allowed(&opset.domain)));
    let mut seen = Seen { used: BTreeSet::new(), nodes: 0, tensors: 0 };
    seen.graph(graph, 1);
    assert_eq!(seen.used, BTreeSet::from_iter(used.into_keys()));
    assert!(seen.nodes <= LIMITS.nodes && seen.tensors <= LIMITS.tensors);
    let initializers: BTreeSet<&[u8]> = graph.initializer.iter().map(|tensor| &tensor.name[..]).collect();
    let inputs: Vec<Port> = graph.input.iter().filter(|input| !initializers.contains(&input.name[..])).map(port).collect();
    assert_eq!(inputs, signature.inputs);
    assert_eq!(graph.output.iter().map(port).collect::<Vec<_>>(), signature.outputs);
    assert!(inputs.len() <= LIMITS.ports && signature.outputs.len() <= LIMITS.ports);
});

fn allowed(domain: &[u8]) -> bool {
    matches!(domain, b"" | b"ai.onnx" | b"ai.onnx.ml")
}

struct Seen {
    used: BTreeSet<String>,
    nodes: usize,
    tensors: usize,
}

impl Seen {
    fn graph(&mut self, graph: &Graph, depth: usize) {
        assert!(depth <= LIMITS.nesting);
        graph.initializer.iter().for_each(|tensor| self.tensor(tensor, depth == 1));
        for node in &graph.node {
            self.nodes += 1;
            assert!(allowed(&node.domain));
            for attribute in &node.attribute {
                attribute.t.iter().chain(&attribute.tensors).for_each(|tensor| self.tensor(tensor, false));
                attribute.g.iter().chain(&attribute.graphs).for_each(|graph| self.graph(graph, depth + 1));
            }
        }
    }

    /// A tensor has exactly the data of its shape, here or within a file that is verified.
    fn tensor(&mut self, tensor: &TensorProto, initializer: bool) {
        self.tensors += 1;
        assert!(tensor.dims.len() <= LIMITS.rank && tensor.dims.iter().all(|length| (0..=LIMITS.dimension as i64).contains(length)));
        let elements: i64 = tensor.dims.iter().product();
        assert!(elements as u64 <= LIMITS.elements);
        let width = match tensor.data_type {
            1 | 6 | 12 => 4,
            2 | 3 | 9 => 1,
            4 | 5 | 10 | 16 => 2,
            7 | 11 | 13 => 8,
            _ => return,
        };
        let bytes = elements as usize * width;
        let typed = tensor.float_data.len()
            + tensor.int32_data.len()
            + tensor.int64_data.len()
            + tensor.double_data.len()
            + tensor.uint64_data.len()
            + tensor.string_data.len();
        if tensor.data_location == 0 && tensor.external_data.is_empty() {
            match &tensor.raw_data {
                Some(raw) => assert!(raw.len() == bytes && typed == 0),
                None => assert_eq!(typed, elements as usize),
            }
            return;
        }
        assert!(initializer && tensor.data_location == 1 && tensor.raw_data.is_none() && typed == 0);
        let of = |key: &[u8]| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| String::from_utf8_lossy(&entry.value));
        let number = |key| of(key).map_or(0, |text| text.parse::<usize>().expect("a number"));
        let location = of(b"location").expect("a file");
        let size = if location == "w.bin" { 64 } else { 1 << 20 };
        assert!(number(b"length") == bytes && number(b"offset") + bytes <= size);
        self.used.insert(location.into_owned());
    }
}

fn port(value: &ValueInfo) -> Port {
    let tensor = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref()).expect("a tensor");
    let datatype = match tensor.elem_type {
        1 => Datatype::Fp32,
        2 => Datatype::Uint8,
        3 => Datatype::Int8,
        4 => Datatype::Uint16,
        5 => Datatype::Int16,
        6 => Datatype::Int32,
        7 => Datatype::Int64,
        8 => Datatype::Bytes,
        9 => Datatype::Bool,
        10 => Datatype::Fp16,
        11 => Datatype::Fp64,
        12 => Datatype::Uint32,
        13 => Datatype::Uint64,
        16 => Datatype::Bf16,
        other => panic!("an element type {other}"),
    };
    let length = |dimension: &Dimension| dimension.dim_value.map(|length| u64::try_from(length).expect("no negative dimension"));
    let shape = tensor.shape.as_ref().expect("a shape").dim.iter().map(length).collect();
    Port { name: String::from_utf8(value.name.clone()).expect("a name in UTF-8"), datatype, shape }
}

fn made() -> Vec<Vec<u8>> {
    let value = |name: &str, elem_type, shape: &[Option<i64>]| {
        let dim = shape.iter().map(|length| Dimension { dim_value: *length, dim_param: length.is_none().then(|| b"n".to_vec()) }).collect();
        ValueInfo { name: name.into(), r#type: Some(Type { tensor_type: Some(TensorType { elem_type, shape: Some(Shape { dim }) }) }) }
    };
    let node = |operator: &str, domain: &str| Node {
        input: vec![b"x".to_vec(), b"w".to_vec()],
        output: vec![b"y".to_vec()],
        op_type: operator.into(),
        domain: domain.into(),
        ..Node::default()
    };
    let entry = |key: &str, value: &str| Entry { key: key.into(), value: value.into() };
    let raw = TensorProto { dims: vec![2, 2], data_type: 1, name: b"w".to_vec(), raw_data: Some(vec![0; 16]), ..TensorProto::default() };
    let typed = TensorProto { dims: vec![2], data_type: 7, name: b"w".to_vec(), int64_data: vec![1, -1], ..TensorProto::default() };
    let outside = TensorProto {
        dims: vec![2, 2],
        data_type: 1,
        name: b"w".to_vec(),
        data_location: 1,
        external_data: vec![entry("location", "w.bin"), entry("offset", "16"), entry("length", "16")],
        ..TensorProto::default()
    };
    let model = |initializer: TensorProto, node: Node| Model {
        ir_version: 8,
        graph: Some(Graph {
            node: vec![node],
            name: b"g".to_vec(),
            initializer: vec![initializer],
            input: vec![value("x", 1, &[None, Some(2)]), value("w", 1, &[Some(2), Some(2)])],
            output: vec![value("y", 9, &[None])],
        }),
        opset_import: vec![OperatorSet { domain: vec![], version: 17 }],
        metadata_props: vec![entry("author", "nobody")],
        ..Model::default()
    };
    let inner = Graph { node: vec![node("Identity", "ai.onnx")], output: vec![value("y", 1, &[])], ..Graph::default() };
    let looping = Node {
        attribute: vec![proto::Attribute { name: b"body".to_vec(), g: Some(inner), t: Some(typed.clone()), ..proto::Attribute::default() }],
        ..node("Loop", "")
    };
    let built = [model(raw.clone(), node("MatMul", "")), model(typed, looping), model(outside, node("Scaler", "ai.onnx.ml"))];
    let foreign = model(raw, node("Evil", "com.microsoft"));
    let files = ["policies/models/digits.onnx", "tests/data/tabular-beside.onnx"].map(file);
    built.iter().chain([&foreign]).map(Model::encode_to_vec).chain(files).collect()
}
