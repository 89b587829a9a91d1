//! Models that load and do harm when they run, written by hand: no exporter makes them.

/// Inputs `times` and `x`: it goes round as often as `times` says, and gives `x`.
pub fn endless() -> Vec<u8> {
    let same = |from: &str, to: &str| [bytes(1, from), bytes(2, to), bytes(4, "Identity")].concat();
    let body = [
        bytes(1, same("going", "goes_on")),
        bytes(1, same("before", "after")),
        bytes(2, "body"),
        bytes(11, port("round", 7, &[])),
        bytes(11, port("going", 9, &[])),
        bytes(11, port("before", 1, &[Some(1)])),
        bytes(12, port("goes_on", 9, &[])),
        bytes(12, port("after", 1, &[Some(1)])),
    ]
    .concat();
    let attribute = [bytes(1, "body"), bytes(6, body), varint(20, 5)].concat();
    let node = [bytes(1, "times"), bytes(1, ""), bytes(1, "x"), bytes(2, "y"), bytes(4, "Loop"), bytes(5, attribute)].concat();
    let inputs = [bytes(11, port("times", 7, &[])), bytes(11, port("x", 1, &[Some(1)]))].concat();
    model([bytes(1, node), bytes(2, "endless"), inputs, bytes(12, port("y", 1, &[Some(1)]))].concat())
}

/// Input `shape`: it asks for as much memory as that says, and gives how many elements it has.
pub fn bomb() -> Vec<u8> {
    let fill = [bytes(1, "shape"), bytes(2, "filled"), bytes(4, "ConstantOfShape")].concat();
    let size = [bytes(1, "filled"), bytes(2, "y"), bytes(4, "Size")].concat();
    // Something has to read the elements, or they would not be made.
    let most = [
        bytes(1, "filled"),
        bytes(2, "most"),
        bytes(4, "ReduceMax"),
        bytes(5, [bytes(1, "keepdims"), varint(3, 0), varint(20, 2)].concat()),
    ];
    let ports = [bytes(11, port("shape", 7, &[None])), bytes(12, port("y", 7, &[])), bytes(12, port("most", 1, &[]))].concat();
    model([bytes(1, fill), bytes(1, size), bytes(1, most.concat()), bytes(2, "bomb"), ports].concat())
}

/// IR version 8, opset 17.
fn model(graph: Vec<u8>) -> Vec<u8> {
    [varint(1, 8), bytes(8, varint(2, 17)), bytes(7, graph)].concat()
}

fn port(name: &str, element: u64, shape: &[Option<u64>]) -> Vec<u8> {
    let dimension = |length: &Option<u64>| bytes(1, length.map_or_else(|| bytes(2, "n"), |length| varint(1, length)));
    let shape: Vec<u8> = shape.iter().flat_map(dimension).collect();
    let tensor = [varint(1, element), bytes(2, shape)].concat();
    [bytes(1, name), bytes(2, bytes(1, tensor))].concat()
}

fn number(mut value: u64) -> Vec<u8> {
    let mut written = Vec::new();
    while value >= 0x80 {
        written.push(value as u8 | 0x80);
        value >>= 7;
    }
    written.push(value as u8);
    written
}

fn varint(field: u64, value: u64) -> Vec<u8> {
    [number(field << 3), number(value)].concat()
}

fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [number(field << 3 | 2), number(value.len() as u64), value.to_vec()].concat()
}
