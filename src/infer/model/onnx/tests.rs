use super::protobuf::{OTHER_KIND, TRUNCATED};
use super::*;

/// A protobuf message, written by hand: the tests must be able to write what no library would.
#[derive(Clone, Default)]
pub(in crate::infer::model) struct Build(pub Vec<u8>);

/// How many rows lie elsewhere, and what is said of where.
pub(in crate::infer::model) type Piece<'p> = (u64, Vec<(&'p str, String)>);

impl Build {
    fn number(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    pub(in crate::infer::model) fn varint(self, field: u64, value: u64) -> Self {
        self.number(field << 3).number(value)
    }

    pub(in crate::infer::model) fn bytes(self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let mut built = self.number(field << 3 | 2).number(value.as_ref().len() as u64);
        built.0.extend_from_slice(value.as_ref());
        built
    }

    pub(in crate::infer::model) fn message(self, field: u64, value: Self) -> Self {
        self.bytes(field, value.0)
    }

    fn each(self, values: impl IntoIterator<Item = Self>, field: u64) -> Self {
        values.into_iter().fold(self, |built, value| built.message(field, value))
    }

    /// It loops for ever on whatever it is given.
    pub(in crate::infer::model) fn endless_from_the_start() -> Vec<u8> {
        let times = tensor(7, &[]).bytes(9, i64::MAX.to_le_bytes()).bytes(8, "times");
        let graph = graph().message(1, looping()).message(5, times).message(11, port("x", 1, &[Some(1)]));
        model(graph.message(12, port("y", 1, &[Some(1)])))
    }

    pub(in crate::infer::model) fn declares_more_than_it_gives() -> Vec<u8> {
        let shape = new().bytes(1, "x").bytes(1, "shape").bytes(2, "y").bytes(4, "Reshape");
        let graph = graph().message(1, shape).each([port("x", 1, &[None]), port("shape", 7, &[Some(1)])], 11);
        let one = tensor(7, &[1]).bytes(9, 1_i64.to_le_bytes()).bytes(8, "one");
        let same = new().bytes(1, "one").bytes(2, "z").bytes(4, "Identity");
        // `shape` is zeros in the first run: it keeps the length of x, which is 1.
        model(graph.message(5, one).message(1, same).each([port("y", 1, &[Some(3)]), port("z", 7, &[Some(1)])], 12))
    }

    /// Gives `output` by looking its tokens up in a table of rows; what else it takes, it does not look at.
    pub(in crate::infer::model) fn looks_tokens_up(inputs: &[&str], table: &[Vec<f32>], output: &str) -> Vec<u8> {
        let width = table[0].len() as u64;
        let numbers: Vec<u8> = table.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
        let rows = tensor(1, &[table.len() as u64, width]).bytes(9, numbers).bytes(8, "table");
        let gather = new().bytes(1, "table").bytes(1, inputs[0]).bytes(2, output).bytes(4, "Gather");
        let inputs = inputs.iter().map(|name| port(name, 7, &[None, None]));
        model(graph().message(1, gather).message(5, rows).each(inputs, 11).message(12, port(output, 1, &[None, None, Some(width)])))
    }

    /// The same over rows of `width` in files: of each piece the number of rows, and what the graph says of where they lie.
    pub(in crate::infer::model) fn looks_up_what_lies_beside(width: u64, pieces: &[Piece<'_>]) -> Vec<u8> {
        let name = |piece: usize| format!("rows{piece}");
        let said = |(piece, (rows, pairs)): (usize, &Piece<'_>)| {
            let rows = tensor(1, &[*rows, width]).bytes(8, name(piece)).varint(14, 1);
            pairs.iter().fold(rows, |built, (key, value)| built.message(13, new().bytes(1, key).bytes(2, value)))
        };
        let axis = new().bytes(1, "axis").varint(3, 0).varint(20, 2);
        let joins = (0..pieces.len()).fold(new(), |built, piece| built.bytes(1, name(piece)));
        let joins = joins.bytes(2, "table").bytes(4, "Concat").message(5, axis);
        let gather = new().bytes(1, "table").bytes(1, "input_ids").bytes(2, "last_hidden_state").bytes(4, "Gather");
        let inputs = ["input_ids", "attention_mask"].map(|name| port(name, 7, &[None, None]));
        let output = port("last_hidden_state", 1, &[None, None, Some(width)]);
        model(graph().each([joins, gather], 1).each(pieces.iter().enumerate().map(said), 5).each(inputs, 11).message(12, output))
    }

    pub(in crate::infer::model) fn unknown_operator() -> Vec<u8> {
        model(through(1, "NoSuchOperator"))
    }
}

pub(in crate::infer::model) fn new() -> Build {
    Build::default()
}

/// Around a graph: IR version 8, opset 17.
fn model(graph: Build) -> Vec<u8> {
    new().varint(1, 8).message(8, new().varint(2, 17)).message(7, graph).0
}

fn graph() -> Build {
    new().bytes(2, "g")
}

fn port(name: &str, element: u64, shape: &[Option<u64>]) -> Build {
    let dimensions = shape.iter().map(|length| length.map_or_else(|| new().bytes(2, "n"), |length| new().varint(1, length)));
    let tensor = new().varint(1, element).message(2, new().each(dimensions, 1));
    new().bytes(1, name).message(2, new().message(1, tensor))
}

/// A port whose only dimension is free, and called `lead`.
fn led(name: &str, lead: &str) -> Build {
    let tensor = new().varint(1, 1).message(2, new().message(1, new().bytes(2, lead)));
    new().bytes(1, name).message(2, new().message(1, tensor))
}

#[test]
fn inputs_are_no_batch_together_where_their_first_dimensions_have_names_of_their_own() {
    for (inputs, apart) in [
        ([led("x", "queries"), led("z", "keys")], true),
        ([led("x", "N"), led("z", "N")], false),
        ([led("x", "N"), led("z", "")], false),
        ([led("x", "N"), port("z", 1, &[Some(3)])], false),
    ] {
        let node = new().bytes(1, "x").bytes(2, "y").bytes(4, "Identity");
        let file = model(graph().message(1, node).each(inputs, 11).message(12, port("y", 1, &[None])));
        assert_eq!(read(&file, &Limits::DEFAULT).unwrap().apart, apart);
    }
}

fn tensor(element: u64, dimensions: &[u64]) -> Build {
    dimensions.iter().fold(new(), |built, length| built.varint(1, *length)).varint(2, element)
}

/// `x` to `y` by one operator.
fn through(element: u64, operator: &str) -> Build {
    let node = new().bytes(1, "x").bytes(2, "y").bytes(4, operator);
    graph().message(1, node).message(11, port("x", element, &[None])).message(12, port("y", element, &[None]))
}

pub(in crate::infer::model) fn pass_through(element: u64) -> Vec<u8> {
    model(through(element, "Identity"))
}

/// Its input `x` is an output, too, before `y`, which is `x` with the other sign.
pub(in crate::infer::model) fn gives_its_input_back() -> Vec<u8> {
    let graph = through(1, "Neg");
    let outputs = graph.0.len() - port("y", 1, &[None]).0.len() - 2;
    model(Build(graph.0[..outputs].to_vec()).each([port("x", 1, &[None]), port("y", 1, &[None])], 12))
}

/// It divides its integers by themselves, which those do not take that are zero.
pub(in crate::infer::model) fn divides_by_its_input() -> Vec<u8> {
    let node = new().bytes(1, "x").bytes(1, "x").bytes(2, "y").bytes(4, "Div");
    model(graph().message(1, node).message(11, port("x", 7, &[None])).message(12, port("y", 7, &[None])))
}

pub(in crate::infer::model) fn number_of(wanted: Datatype) -> u64 {
    (1..=16).find(|number| datatype(*number) == Some(wanted)).unwrap()
}

fn looping() -> Build {
    let same = |from: &str, to: &str| new().bytes(1, from).bytes(2, to).bytes(4, "Identity");
    let body = new()
        .each([same("going", "goes_on"), same("before", "after")], 1)
        .bytes(2, "body")
        .each([port("round", 7, &[]), port("going", 9, &[]), port("before", 1, &[Some(1)])], 11)
        .each([port("goes_on", 9, &[]), port("after", 1, &[Some(1)])], 12);
    let attribute = new().bytes(1, "body").message(6, body).varint(20, 5);
    new().bytes(1, "times").bytes(1, "").bytes(1, "x").bytes(2, "y").bytes(4, "Loop").message(5, attribute)
}

/// It goes round as often as its input `times` says, and gives `x`.
pub(in crate::infer::model) fn forever() -> Vec<u8> {
    let inputs = [port("times", 7, &[]), port("x", 1, &[Some(1)])];
    model(graph().message(1, looping()).each(inputs, 11).message(12, port("y", 1, &[Some(1)])))
}

fn with_initializer(tensor: Build) -> Vec<u8> {
    model(through(1, "Identity").message(5, tensor))
}

fn with_attribute(attribute: Build) -> Vec<u8> {
    let node = new().bytes(2, "z").bytes(4, "Constant").message(5, attribute.bytes(1, "value"));
    model(through(1, "Identity").message(1, node))
}

fn external() -> Build {
    tensor(1, &[1]).message(13, new().bytes(1, "location").bytes(2, "weights.bin")).varint(14, 1)
}

fn fault(bytes: &[u8]) -> Fault {
    read(bytes, &Limits::DEFAULT).unwrap_err()
}

fn nested(depth: usize, innermost: Build) -> Build {
    (0..depth).fold(innermost, |inner, _| {
        let attribute = new().bytes(1, "then_branch").message(6, inner).varint(20, 5);
        graph().message(1, new().bytes(4, "If").message(5, attribute))
    })
}

#[test]
fn the_bundled_model_reads_whole() {
    let signature = read(include_bytes!("../../../../policies/models/digits.onnx"), &Limits::DEFAULT).unwrap();
    assert_eq!(signature.inputs.len(), 1);
    assert_eq!(signature.outputs.len(), 2);
}

#[test]
fn every_truncation_of_the_bundled_model_is_refused() {
    let whole = include_bytes!("../../../../policies/models/digits.onnx");
    for length in 0..whole.len() {
        assert!(read(&whole[..length], &Limits::DEFAULT).is_err(), "{length} bytes");
    }
}

#[test]
fn no_changed_byte_of_the_bundled_model_makes_the_reader_panic() {
    let whole = include_bytes!("../../../../policies/models/digits.onnx").to_vec();
    for place in 0..whole.len() {
        for change in [0xff, 0x80, 0x01] {
            let mut changed = whole.clone();
            changed[place] ^= change;
            drop(read(&changed, &Limits::DEFAULT));
        }
    }
}

#[test]
fn external_data_is_refused_wherever_it_hides() {
    let value = |attribute: Build| with_attribute(attribute);
    let in_subgraph = nested(3, graph().message(5, external()));
    let whole = external().message(13, new().bytes(1, "length").bytes(2, "4"));
    assert_eq!(fault(&with_initializer(whole)), Fault::NotBeside("weights.bin".into()));
    assert!(matches!(fault(&with_initializer(external())), Fault::External(_)));
    for bytes in [
        with_initializer(tensor(1, &[1]).bytes(9, [0; 4]).varint(14, 1)),
        with_initializer(tensor(1, &[1]).bytes(9, [0; 4]).varint(14, 2)),
        with_initializer(tensor(1, &[1]).bytes(9, [0; 4]).message(13, new().bytes(1, "location").bytes(2, "/etc/passwd"))),
        value(new().message(5, external())),
        value(new().message(10, external())),
        model(in_subgraph),
    ] {
        assert_eq!(fault(&bytes), Fault::ExternalData);
    }
}

#[test]
fn an_address_in_memory_is_refused_as_such() {
    let marker = new().bytes(1, "location").bytes(2, "*/_ORT_MEM_ADDR_/*");
    assert_eq!(fault(&with_initializer(tensor(1, &[1]).message(13, marker.clone()))), Fault::MemoryAddress);
    assert_eq!(fault(&with_attribute(new().message(5, tensor(1, &[1]).message(13, marker)))), Fault::MemoryAddress);
}

#[test]
fn what_expands_when_it_is_loaded_is_refused() {
    let sparse = new().message(1, external());
    assert_eq!(fault(&model(graph().message(15, sparse.clone()))), Fault::Sparse);
    assert_eq!(fault(&with_attribute(new().message(22, sparse.clone()))), Fault::Sparse);
    assert_eq!(fault(&with_attribute(new().message(23, sparse))), Fault::Sparse);
    let with = |field| new().varint(1, 8).message(field, new()).message(7, through(1, "Identity")).0;
    assert_eq!(fault(&with(20)), Fault::Training);
    assert_eq!(fault(&with(25)), Fault::Functions);
    assert_eq!(fault(&with(26)), Fault::Devices);
    assert_eq!(fault(&model(graph().message(1, new().message(10, new())))), Fault::Devices);
    assert_eq!(fault(&with_initializer(tensor(1, &[1]).message(3, new()))), Fault::Segment);
}

#[test]
fn operators_of_other_domains_are_refused_wherever_they_stand() {
    let node = |domain: &str| new().bytes(4, "Op").bytes(7, domain);
    for domain in ["", "ai.onnx", "ai.onnx.ml"] {
        assert!(read(&model(through(1, "Identity").message(1, node(domain))), &Limits::DEFAULT).is_ok(), "{domain}");
    }
    for domain in ["com.microsoft", "ai.onnx.training", "ai.onnx.", "evil\u{1b}[31m", "AI.ONNX"] {
        let refused = Fault::Domain(domain.into());
        assert_eq!(fault(&model(graph().message(1, node(domain)))), refused);
        assert_eq!(fault(&model(nested(2, graph().message(1, node(domain))))), refused);
        assert_eq!(fault(&new().varint(1, 8).message(8, new().bytes(1, domain)).0), refused);
    }
    assert!(!Fault::Domain("evil\u{1b}[31m".into()).to_string().contains('\u{1b}'));
}

#[test]
fn texts_are_made_alike_by_the_rules_of_no_machine() {
    let node = |locale: Option<&str>| {
        let node = [("case_change_action", "LOWER")].into_iter().chain(locale.map(|locale| ("locale", locale)));
        let node = node.fold(new().bytes(4, "StringNormalizer"), |node, (name, text)| {
            node.message(5, new().bytes(1, name).bytes(4, text).varint(20, 3))
        });
        model(graph().message(1, node))
    };
    assert!(read(&node(Some("C")), &Limits::DEFAULT).is_ok());
    for locale in [None, Some("en_US.UTF-8"), Some("")] {
        assert_eq!(fault(&node(locale)), Fault::Locale, "{locale:?}");
    }
}

#[test]
fn each_bound_holds_at_itself_and_not_one_past() {
    let past = |limits: Limits, bytes: &[u8]| matches!(read(bytes, &limits), Err(Fault::Past { .. }));
    let all = Limits::DEFAULT;
    let limit = |nesting| Limits { nesting, ..all };
    let deep = |depth: usize| model(nested(depth - 1, graph()));
    assert!(!past(limit(8), &deep(8)) && past(limit(8), &deep(9)));
    let nodes = |count| model((0..count).fold(graph(), |built, _| built.message(1, new())));
    assert!(!past(Limits { nodes: 5, ..all }, &nodes(5)) && past(Limits { nodes: 5, ..all }, &nodes(6)));
    let tensors = |count| model((0..count).fold(graph(), |built, _| built.message(5, tensor(1, &[0]))));
    assert!(!past(Limits { tensors: 5, ..all }, &tensors(5)) && past(Limits { tensors: 5, ..all }, &tensors(6)));
    let ports = |count| model((0..count).fold(graph(), |built, n| built.message(11, port(&n.to_string(), 1, &[]))));
    assert!(!past(Limits { ports: 5, ..all }, &ports(5)) && past(Limits { ports: 5, ..all }, &ports(6)));
    for shaped in [
        |shape: &[u64]| with_initializer(tensor(1, shape)),
        |shape: &[u64]| model(graph().message(11, port("x", 1, &shape.iter().copied().map(Some).collect::<Vec<_>>()))),
    ] {
        assert!(!past(all, &shaped(&[1; 16])) && past(all, &shaped(&[1; 17])));
        assert!(!past(all, &shaped(&[all.dimension])) && past(all, &shaped(&[all.dimension + 1])));
        assert!(!past(all, &shaped(&[1 << 16, 1 << 15])) && past(all, &shaped(&[1 << 16, (1 << 15) + 1])));
        // A product that overflows 64 bits.
        assert!(past(all, &shaped(&[1 << 30, 1 << 30, 1 << 30])));
        assert_eq!(fault(&shaped(&[-1_i64 as u64])), Fault::NegativeDimension);
    }
    let types = |depth: usize| {
        let inner = new().message(1, new().varint(1, 1));
        let kind = (1..depth).fold(inner, |inner, _| new().message(4, new().message(1, inner)));
        model(graph().message(13, new().bytes(1, "t").message(2, kind)))
    };
    assert!(!past(limit(8), &types(8)) && past(limit(8), &types(9)));
}

#[test]
fn hostile_depth_and_length_cost_no_more_than_their_bytes() {
    let from = std::time::Instant::now();
    assert!(matches!(fault(&model(nested(5_000, graph()))), Fault::Past { .. }));
    // A packed list of a million dimensions, and a length that claims 2^63 bytes.
    assert!(matches!(fault(&with_initializer(new().bytes(1, vec![1; 1_000_000]))), Fault::Past { .. }));
    let claims = new().varint(1, 8).number(7 << 3 | 2).number(1 << 63);
    assert_eq!(fault(&claims.0), TRUNCATED);
    assert!(from.elapsed() < std::time::Duration::from_secs(2), "{:?}", from.elapsed());
}

#[test]
fn a_tensor_has_exactly_the_data_that_its_shape_says() {
    let good = [
        tensor(1, &[2]).bytes(9, [0; 8]),
        tensor(1, &[2]).bytes(4, [0; 8]),
        tensor(7, &[2]).bytes(7, [1, 2]),
        tensor(7, &[2]).varint(7, 1).varint(7, 2),
        tensor(8, &[2]).bytes(6, "a").bytes(6, "b"),
        tensor(9, &[2]).bytes(9, [0, 1]),
        tensor(22, &[3]).bytes(9, [0; 2]),
        tensor(1, &[0]),
        tensor(1, &[]).bytes(9, [0; 4]),
    ];
    for (index, good) in good.into_iter().enumerate() {
        assert!(read(&with_initializer(good), &Limits::DEFAULT).is_ok(), "{index}");
    }
    let bad = [
        tensor(1, &[2]),
        tensor(1, &[2]).bytes(9, [0; 7]),
        tensor(1, &[2]).bytes(9, [0; 9]),
        tensor(1, &[2]).bytes(4, [0; 4]),
        tensor(1, &[2]).bytes(9, [0; 8]).bytes(4, [0; 8]),
        tensor(1, &[2]).bytes(10, [0; 16]),
        tensor(7, &[2]).bytes(7, [1, 2, 3]),
        tensor(8, &[1]).bytes(9, [0; 1]),
        tensor(8, &[0]).bytes(9, []),
    ];
    for (index, bad) in bad.into_iter().enumerate() {
        assert_eq!(fault(&with_initializer(bad)), Fault::DataLength, "{index}");
    }
    assert_eq!(fault(&with_initializer(tensor(0, &[0]))), Fault::DataType(0));
    assert_eq!(fault(&with_initializer(tensor(27, &[0]))), Fault::DataType(27));
    assert_eq!(fault(&with_initializer(tensor(9, &[2]).bytes(9, [0, 2]))), Fault::NotABool);
}

#[test]
fn bytes_that_parsers_could_read_otherwise_are_refused() {
    let whole = pass_through(1);
    let with = |rubbish: &[u8]| fault(&[whole.as_slice(), rubbish].concat());
    // A second graph, a field that is not ONNX's, field 0, a group, rubbish.
    let second = new().message(7, graph());
    assert_eq!(with(&second.0), Fault::WrittenTwice { message: "ModelProto", number: 7 });
    assert_eq!(with(&new().varint(30, 1).0), Fault::UnknownField { message: "ModelProto", number: 30 });
    assert_eq!(with(&new().varint(1 << 28, 1).0), Fault::UnknownField { message: "ModelProto", number: 1 << 28 });
    assert_eq!(with(&[0, 0]), Fault::UnknownField { message: "ModelProto", number: 0 });
    assert!(matches!(with(&[0x5b]), Fault::NotOnnx(_)));
    assert!(matches!(with(&[0xff; 20]), Fault::NotOnnx(_)));
    assert_eq!(with(&[0x12]), TRUNCATED);
    // The graph as a number.
    assert_eq!(fault(&new().varint(7, 1).0), OTHER_KIND);
    for nothing in [&b""[..], b"\x08\x08", b"hello, this is text", &[0; 100]] {
        assert!(read(nothing, &Limits::DEFAULT).is_err());
    }
}

#[test]
fn inputs_that_are_initializers_are_no_ports() {
    let x = port("x", 1, &[None, Some(3)]);
    let w = port("w", 1, &[Some(1)]);
    let built = graph().each([x, w], 11).message(5, tensor(1, &[1]).bytes(9, [0; 4]).bytes(8, "w"));
    let signature = read(&model(built), &Limits::DEFAULT).unwrap();
    assert_eq!(signature.inputs, [Port { name: "x".into(), datatype: Datatype::Fp32, shape: vec![None, Some(3)] }]);
}

#[test]
fn ports_that_the_protocol_cannot_carry_are_refused() {
    let why = |bytes: &[u8]| match fault(bytes) {
        Fault::Port { why, .. } => why,
        other => panic!("{other}"),
    };
    let outputs = |outputs: Vec<Build>| model(graph().each(outputs, 12));
    let sequence = new().bytes(1, "s").message(2, new().message(4, new().message(1, new().message(5, new().varint(1, 7)))));
    assert!(why(&outputs(vec![sequence])).contains("zipmap"));
    assert!(why(&outputs(vec![port("c", 14, &[])])).contains("elements"));
    assert!(why(&outputs(vec![new().bytes(1, "x").message(2, new().message(1, new().varint(1, 1)))])).contains("no shape"));
    assert!(why(&outputs(vec![port("x", 1, &[]), port("x", 1, &[])])).contains("twice"));
    assert!(why(&outputs(vec![port("", 1, &[])])).contains("no name"));
    assert!(why(&outputs(vec![port(&"x".repeat(257), 1, &[])])).contains("no name"));
    assert!(read(&outputs(vec![port(&"x".repeat(256), 1, &[])]), &Limits::DEFAULT).is_ok());
}

#[test]
fn session_options_in_the_metadata_are_refused() {
    let entry = new().bytes(1, "ort_config").bytes(2, "{}");
    assert_eq!(fault(&new().varint(1, 8).message(14, entry).0), Fault::SessionOptions);
}

/// An initializer of `elements` FP32 in a file, by these keys and values.
fn outside(elements: u64, pairs: &[(&str, &str)]) -> Build {
    let tensor = tensor(1, &[elements]).bytes(8, "w").varint(14, 1);
    pairs.iter().fold(tensor, |built, (key, value)| built.message(13, new().bytes(1, key).bytes(2, value)))
}

/// It adds to `x` the last two numbers of three that lie in `weights.bin`.
pub(in crate::infer::model) fn adds_what_lies_beside() -> Vec<u8> {
    let add = new().bytes(1, "x").bytes(1, "w").bytes(2, "y").bytes(4, "Add");
    let w = outside(2, &[("location", "weights.bin"), ("offset", "4"), ("length", "8")]);
    let two = |name: &str| port(name, 1, &[Some(2)]);
    model(graph().message(1, add).message(5, w).message(11, two("x")).message(12, two("y")))
}

fn beside(bytes: &[u8]) -> Result<Needed, Fault> {
    let files = [("weights.bin".to_owned(), 20), ("deep/er.bin".to_owned(), 8)].into();
    read_beside(bytes, &Limits::DEFAULT, &files).map(|(_, needed)| needed)
}

#[test]
fn initializers_may_lie_in_files_that_were_verified_with_the_model() {
    let of = |pairs: &[(&str, &str)]| beside(&with_initializer(outside(2, pairs)));
    let needed = |name: &str, end| Ok([(name.to_owned(), end)].into());
    assert_eq!(of(&[("location", "weights.bin"), ("offset", "12"), ("length", "8")]), needed("weights.bin", 20));
    assert_eq!(of(&[("location", "weights.bin"), ("length", "8"), ("checksum", "x")]), needed("weights.bin", 8));
    assert_eq!(of(&[("location", "deep/er.bin"), ("offset", "0"), ("length", "8")]), needed("deep/er.bin", 8));
    for other in ["other.bin", "WEIGHTS.BIN", "er.bin", "weights.bin ", "weights.bin%00"] {
        assert_eq!(of(&[("location", other), ("length", "8")]), Err(Fault::NotBeside(other.into())), "{other}");
    }
    for leaves in
        ["", "./weights.bin", "../weights.bin", "deep/../weights.bin", "/weights.bin", "/etc/passwd", "weights.bin/", "deep\\er.bin", "a\0"]
    {
        assert_eq!(of(&[("location", leaves), ("length", "8")]), Err(Fault::OutsideFolder(leaves.into())), "{leaves}");
    }
}

#[test]
fn data_in_a_file_lie_within_it_and_are_what_the_shape_says() {
    let of = |elements: u64, pairs: &[(&str, &str)]| beside(&with_initializer(outside(elements, pairs)));
    let at = |offset: &str, length: &str| of(2, &[("location", "weights.bin"), ("offset", offset), ("length", length)]);
    assert!(at("12", "8").is_ok());
    for (offset, length) in [
        ("18446744073709551615", "8"),
        ("18446744073709551616", "8"),
        ("-1", "8"),
        ("+1", "8"),
        (" 1", "8"),
        ("0x1", "8"),
        ("", "8"),
        ("0", "7"),
        ("0", "9"),
        ("0", "0"),
    ] {
        assert!(matches!(at(offset, length), Err(Fault::External(_))), "{offset:?} {length:?}: {:?}", at(offset, length));
    }
    for (offset, end) in [("13", 21), ("18446744073709551607", u64::MAX)] {
        assert_eq!(at(offset, "8"), Err(Fault::PastEnd { name: "weights.bin".into(), end, size: 20 }));
    }
    // Of two tensors the one that ends later counts, whichever is written first.
    for (one, other) in [("12", "0"), ("0", "12"), ("13", "0"), ("0", "13")] {
        let both = [one, other].map(|offset| outside(2, &[("location", "weights.bin"), ("offset", offset), ("length", "8")]));
        let found = beside(&model(through(1, "Identity").each(both, 5)));
        assert_eq!(found.is_ok(), one != "13" && other != "13", "{one} {other}: {found:?}");
    }
    let file = ("location", "weights.bin");
    for pairs in [vec![file], vec![("length", "8")], vec![file, file, ("length", "8")], vec![file, ("length", "8"), ("other", "8")]] {
        assert!(matches!(of(2, &pairs), Err(Fault::External(_))), "{pairs:?}");
    }
    assert_eq!(of(2, &[file, ("length", "_ORT_MEM_ADDR_")]), Err(Fault::MemoryAddress));
    // The walk sees no byte of a file: what must be 0 or 1 stays in the model.
    let bools =
        new().varint(1, 1).varint(2, BOOL).bytes(8, "w").varint(14, 1).message(13, new().bytes(1, "location").bytes(2, "weights.bin"));
    assert_eq!(beside(&with_initializer(bools)), Err(Fault::NotABool));
}

#[test]
fn data_in_verified_files_are_for_initializers_alone() {
    let whole = || outside(2, &[("location", "weights.bin"), ("length", "8")]);
    assert!(beside(&with_initializer(whole())).is_ok());
    assert_eq!(beside(&with_initializer(whole().bytes(9, [0; 8]))), Err(Fault::ExternalData));
    assert_eq!(beside(&with_attribute(new().message(5, whole()))), Err(Fault::ExternalData));
    assert_eq!(beside(&model(nested(3, graph().message(5, whole())))), Err(Fault::ExternalData));
}
