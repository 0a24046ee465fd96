//! What is written is read again, and has the structure that torch reads.

use std::collections::BTreeMap;
use std::io::Cursor;

use candle_core::{DType, Device, Tensor};
use llamavid_weights::Checkpoint;
use llamavid_weights::writer::{write_safetensors, write_torch};

use super::writer::on_disk;

fn tensors() -> BTreeMap<String, Tensor> {
    let device = Device::Cpu;
    let counting = Tensor::arange(0f32, 300., &device).unwrap();
    let matrix = counting.reshape((30, 10)).unwrap();
    let large = Tensor::ones((1, 70_000), DType::F32, &device).unwrap();
    BTreeMap::from([
        ("a.f32".to_owned(), matrix.clone()),
        ("a.transposed".to_owned(), matrix.t().unwrap()),
        ("a.f16".to_owned(), matrix.to_dtype(DType::F16).unwrap()),
        ("a.bf16".to_owned(), matrix.to_dtype(DType::BF16).unwrap()),
        ("b.ids".to_owned(), Tensor::new(&[[1i64, -2, 1 << 40]], &device).unwrap()),
        ("b.scalar".to_owned(), Tensor::new(2.5f32, &device).unwrap()),
        ("b.empty".to_owned(), Tensor::zeros((0, 4), DType::F32, &device).unwrap()),
        ("c.large".to_owned(), large),
    ])
}

fn expect_equal(file: &std::path::Path) {
    let checkpoint = Checkpoint::open_file(file).unwrap();
    let expected = tensors();
    assert!(checkpoint.names().eq(expected.keys()));
    for (name, expected) in &expected {
        let read = checkpoint.read(name, &Device::Cpu).unwrap();
        assert_eq!((read.dims(), read.dtype()), (expected.dims(), expected.dtype()), "{name}");
        let numbers = |tensor: &Tensor| {
            tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
        };
        assert_eq!(numbers(&read), numbers(expected), "{name}");
    }
}

#[test]
fn safetensors_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&mut bytes, &tensors(), &metadata).unwrap();
    expect_equal(&on_disk(&folder, "model.safetensors", &bytes));
    // The format's own reader agrees.
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), tensors().len());
}

#[test]
fn torch_files_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = Cursor::new(Vec::new());
    write_torch(&mut bytes, "probe", &tensors()).unwrap();
    let bytes = bytes.into_inner();
    expect_equal(&on_disk(&folder, "probe.bin", &bytes));

    // torch maps the numbers where they lie: uncompressed, at multiples of 64 bytes.
    let mut zip = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
    assert_eq!(zip.by_index(0).unwrap().name().unwrap(), "probe/data.pkl");
    for index in 0..zip.len() {
        let entry = zip.by_index(index).unwrap();
        assert_eq!(entry.compression(), zip::CompressionMethod::Stored);
        assert_eq!(entry.data_start().unwrap_or_default() % 64, 0, "{:?}", entry.name());
    }
    assert_eq!(std::io::read_to_string(zip.by_name("probe/version").unwrap()).unwrap(), "3\n");
}

#[test]
fn numbers_that_torch_lacks_are_refused() {
    let tensors = BTreeMap::from([("x".to_owned(), Tensor::new(&[1u32], &Device::Cpu).unwrap())]);
    let error = write_torch(Cursor::new(Vec::new()), "probe", &tensors).unwrap_err();
    assert!(error.to_string().contains("u32"), "{error}");
}
