use super::*;

fn zip_with(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(content);
    bytes
}

fn npy(descr: &str) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}\n");
    [b"\x93NUMPY\x01\0".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes(), b"data"].concat()
}

fn old_tar() -> Vec<u8> {
    let mut header = vec![0_u8; 512];
    header[..5].copy_from_slice(b"model");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

#[test]
fn formats_that_run_code_or_hide_it_are_told_by_their_bytes() {
    let behind_a_user_block = [&[0; 512][..], b"\x89HDF\r\n\x1a\n"].concat();
    let joblib = b"\x80\x04\x95\x40\0\0\0\0\0\0\0\x8c\x13joblib.numpy_pickle\x94\x8c\x11NumpyArrayWrapper\x94\x93.";
    let cases: Vec<(Vec<u8>, Format)> = vec![
        (b"cposix\nsystem\n(S'id'\ntR.".to_vec(), Format::Pickle),
        (b"(dp0\nS'a'\np1\nI1\ns.".to_vec(), Format::Pickle),
        (b"(lp0\n.".to_vec(), Format::Pickle),
        (b"}q\0X\x01\0\0\0aq\x01K\x01s.".to_vec(), Format::Pickle),
        (b"\x80\x02}q\0.".to_vec(), Format::Pickle),
        (b"\x80\x03}q\0.".to_vec(), Format::Pickle),
        (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}.".to_vec(), Format::Pickle),
        (b"\x80\x05\x95\x0b\0\0\0\0\0\0\0}.".to_vec(), Format::Pickle),
        (joblib.to_vec(), Format::Joblib),
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec(), Format::PyTorch),
        (zip_with("archive/data.pkl", b""), Format::PyTorch),
        (zip_with("archive/constants.pkl", b"archive/data.pkl"), Format::TorchScript),
        (zip_with("model.pkl", b""), Format::Pickle),
        (zip_with("model.joblib", b""), Format::Joblib),
        (zip_with("model.weights.h5", b""), Format::Keras),
        (zip_with("config.json", b"metadata.json"), Format::Keras),
        (zip_with("arr_0.npy", &npy("'<f4'")), Format::NumpyArchive),
        (zip_with("arr_0.npy", &npy("'|O'")), Format::NumpyObjects),
        (zip_with("readme", b""), Format::Zip),
        (b"\x89HDF\r\n\x1a\n\0\0".to_vec(), Format::Hdf5),
        (behind_a_user_block, Format::Hdf5),
        (b"\x1f\x8b\x08\0".to_vec(), Format::Compressed),
        (b"\x78\x9c\x03\0".to_vec(), Format::Compressed),
        (b"BZh9".to_vec(), Format::Compressed),
        (b"\x28\xb5\x2f\xfd\x04".to_vec(), Format::Compressed),
        (b"7z\xbc\xaf\x27\x1c\0\x04".to_vec(), Format::SevenZip),
        (b"Rar!\x1a\x07\x01\0".to_vec(), Format::SevenZip),
        ([&[0x61; 257][..], b"ustar\x0000", &[0; 300]].concat(), Format::Tar),
        (old_tar(), Format::Tar),
        (npy("'<f4'"), Format::Numpy),
        (npy("'|O'"), Format::NumpyObjects),
        (npy("[('a', '<f4'), ('b', 'O')]"), Format::NumpyObjects),
        (b"\x18\0\0\0ORTM\0\0".to_vec(), Format::OrtFlatbuffer),
        (b"\x1c\0\0\0TFL3".to_vec(), Format::TfLite),
        (b"GGUF\x03\0\0\0".to_vec(), Format::Gguf),
        (b"\x7fELF\x02".to_vec(), Format::Executable),
        (b"#!/bin/sh\n".to_vec(), Format::Executable),
        (b"\xac\xed\0\x05sr".to_vec(), Format::JavaObjects),
        (b"\x08\x01\x12\x90\x01\x0a\x10\x22\x05serve".to_vec(), Format::SavedModel),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(), Format::LfsPointer),
        (b"\x10\0\0\0\0\0\0\0{\"a\":{}}".to_vec(), Format::Safetensors),
    ];
    for (bytes, format) in cases {
        assert_eq!(recognise(&bytes), Some(format), "{bytes:?}");
        assert!(!format.to_string().is_empty() && !format.word().is_empty());
    }
}

/// What follows STOP is never read by a loader, so it must not hide what stands before.
#[test]
fn a_pickle_with_rubbish_behind_it_is_a_pickle() {
    for pickle in [&b"cos\nsystem\n(S'id'\ntR."[..], b"(lp0\n.", b"}q\0.", b"(i__main__\nX\n.", b"]q\0(K\x01K\x02e."] {
        assert_eq!(recognise(&[pickle, b"\n# rubbish\n\0\xff"].concat()), Some(Format::Pickle), "{pickle:?}");
    }
}

#[test]
fn text_and_empty_files_are_no_pickles() {
    for text in [
        &b""[..],
        b".",
        b"# Model card\n\nA model.\n",
        b"---\nlicense: mit\n---\n",
        b"{\"a\": 1}\n",
        b"[1, 2].\n",
        b"I am a sentence.\n",
        b"Some words.\n",
        b"(see below).\n",
        b"N/A.\n",
        b"a.\nb.\n",
        b"classifier\nof digits\n.\n",
        b"Permission is granted.\n",
    ] {
        assert_eq!(recognise(text), None, "{text:?}");
    }
}

#[test]
fn opcodes_without_end_are_a_pickle_and_a_truncated_one_is_not() {
    assert_eq!(recognise(&b"K\x01".repeat(5000)), Some(Format::Pickle));
    assert_eq!(recognise(b"K\x01K"), None);
    assert_eq!(recognise(b"X\xff\xff\xff\xffa."), None);
    assert_eq!(recognise(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa."), None);
}

#[test]
fn the_bundled_model_is_none_of_them() {
    assert_eq!(recognise(include_bytes!("../../../../policies/models/digits.onnx")), None);
}

#[test]
fn no_byte_is_in_the_headers_of_two_arrays_and_none_hides_what_another_names() {
    let many = b"\x93NUMPY".repeat(20_000);
    assert_eq!(array_headers(&many).map(<[u8]>::len).sum::<usize>(), many.len());
    assert_eq!(recognise(&many), Some(Format::Numpy));
    for named in ["[('\u{93}NUMPY', 'O')]", "[('a', 'O'), ('\u{93}NUMPY', '<f4')]"] {
        // As Latin-1, which headers are written in.
        let written: Vec<u8> = npy(named).iter().copied().filter(|byte| *byte != 0xc2).collect();
        assert_eq!(array_headers(&written).count(), 2);
        assert_eq!(recognise(&written), Some(Format::NumpyObjects), "{named}");
    }
}
