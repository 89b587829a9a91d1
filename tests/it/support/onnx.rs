//! A model whose answer proves which it is: it adds its own number to whatever it is given.

/// ONNX that answers `y = x + number`, for `x` and `y` of one row and one column.
pub fn adder(number: f32) -> Vec<u8> {
    // Field numbers are those of onnx.proto.
    let node = [bytes(1, b"x"), bytes(1, b"number"), bytes(2, b"y"), bytes(4, b"Add")].concat();
    let initializer = [varint(1, 1), varint(1, 1), varint(2, 1), bytes(8, b"number"), bytes(9, &number.to_le_bytes())].concat();
    let graph = [bytes(1, &node), bytes(2, b"adder"), bytes(5, &initializer), bytes(11, &port(b"x")), bytes(12, &port(b"y"))].concat();
    [varint(1, 8), bytes(8, &varint(2, 17)), bytes(7, &graph)].concat()
}

fn port(name: &[u8]) -> Vec<u8> {
    let one = bytes(1, &varint(1, 1));
    let tensor = [varint(1, 1), bytes(2, &[one.clone(), one].concat())].concat();
    [bytes(1, name), bytes(2, &bytes(1, &tensor))].concat()
}

fn varint(field: u8, value: u8) -> Vec<u8> {
    assert!(field < 16 && value < 128, "one byte is enough here");
    vec![field << 3, value]
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let (low, high) = (value.len() & 0x7f, value.len() >> 7);
    assert!(field < 16 && high < 128, "two bytes are enough here");
    [&[field << 3 | 2, low as u8 | 0x80, high as u8], value].concat()
}
