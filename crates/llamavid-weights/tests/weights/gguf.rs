//! GGUF files: what is read, what stays mapped, and what is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use llamavid_kernels::{BlockFormat, QuantisedMatrix, interleaving_pays};
use llamavid_weights::gguf::{GgufFile, Value};
use llamavid_weights::key_table::{INSTRUCT_BLIP, LANGUAGE, TOKENS};
use llamavid_weights::writer::{GgufTensor, GgufValue, GgufWriter, InterleavedCopy};
use llamavid_weights::{Checkpoint, Error, ErrorKind, Loader, Quantisation};
use tempfile::TempDir;

use self::noise::noise;
use crate::writer::on_disk;

/// Numbers of the kernels' tests.
#[path = "../../../llamavid-kernels/src/noise.rs"]
mod noise;

const WIDTH: usize = 256;
const HEADS: usize = 4;

/// A GGUF file in the making.
#[derive(Clone)]
struct File {
    entries: Vec<(String, u32, Vec<u8>)>,
    /// Name, dimensions as written, kind and bytes.
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl File {
    fn of(architecture: &str) -> Self {
        let mut file = Self { entries: Vec::new(), tensors: Vec::new() };
        file.entry("general.architecture", 8, text(architecture));
        file.whole(&format!("{architecture}.attention.head_count"), HEADS as u32);
        file.whole(&format!("{architecture}.embedding_length"), WIDTH as u32);
        file
    }

    fn entry(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.entries.push((key.to_owned(), kind, value));
    }

    fn whole(&mut self, key: &str, value: u32) {
        self.entry(key, 4, value.to_le_bytes().to_vec());
    }

    fn tensor(&mut self, name: &str, shape: &[usize], format: BlockFormat, values: &[f32]) {
        let kind = match format {
            BlockFormat::F32 => 0,
            BlockFormat::F16 => 1,
            BlockFormat::Q4_0 => 2,
            BlockFormat::Q8_0 => 8,
            BlockFormat::Q4K => 12,
            BlockFormat::Q5K => 13,
            BlockFormat::Q6K => 14,
            BlockFormat::BF16 => 30,
        };
        let bytes = format.encode(values, *shape.last().unwrap()).unwrap();
        let dimensions = shape.iter().rev().map(|size| *size as u64).collect();
        self.tensors.push((name.to_owned(), dimensions, kind, bytes));
    }

    /// The same with its rows interleaved, under a number that ggml has not.
    fn interleaved(&mut self, name: &str, shape: &[usize], format: BlockFormat, values: &[f32]) {
        self.tensor(name, shape, format, values);
        if let Some((_, _, kind, bytes)) = self.tensors.last_mut() {
            *kind |= 0x4c56_0000;
            *bytes = format.interleave(bytes, *shape.last().unwrap()).unwrap();
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = [b"GGUF".as_slice(), &3u32.to_le_bytes()].concat();
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            head.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        let mut data = Vec::new();
        for (name, dimensions, kind, bytes) in &self.tensors {
            head.extend(text(name));
            head.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|size| head.extend(size.to_le_bytes()));
            head.extend(kind.to_le_bytes());
            head.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        head.resize(head.len().next_multiple_of(32), 0);
        [head, data].concat()
    }

    fn on_disk(&self) -> (TempDir, PathBuf) {
        let folder = TempDir::new().unwrap();
        let path = on_disk(&folder, "model.gguf", &self.bytes());
        (folder, path)
    }

    fn checkpoint(&self) -> Checkpoint {
        let (_folder, path) = self.on_disk();
        Checkpoint::from_gguf(GgufFile::open(&path).unwrap()).unwrap()
    }
}

fn values_of(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn refused(bytes: &[u8], kind: ErrorKind, told: &str) {
    let folder = TempDir::new().unwrap();
    let path = on_disk(&folder, "model.gguf", bytes);
    let error = GgufFile::open(&path).and_then(Checkpoint::from_gguf).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(told), "{error}");
    assert!(error.to_string().contains("model.gguf"), "{error}");
}

#[test]
fn every_format_is_read_and_stays_in_the_file() {
    let mut file = File::of("llamavid");
    for (seed, format) in BlockFormat::ALL.into_iter().enumerate() {
        file.tensor(format.name(), &[3, WIDTH], format, &noise(3 * WIDTH, seed as u32));
    }
    let checkpoint = file.checkpoint();
    for (seed, format) in BlockFormat::ALL.into_iter().enumerate() {
        let name = format.name();
        assert_eq!(checkpoint.shape(name).unwrap(), [3, WIDTH]);
        assert_eq!(checkpoint.dtype(name).unwrap(), DType::F32);
        assert_eq!(checkpoint.format(name).unwrap(), Some(format));
        let matrix = checkpoint.matrix(name).unwrap().unwrap();
        assert_eq!(matrix.bytes(), format.encode(&noise(3 * WIDTH, seed as u32), WIDTH).unwrap());
        let read = checkpoint.read(name, &Device::Cpu).unwrap();
        assert_eq!(values_of(&read), values_of(&matrix.dequantise().unwrap()));
    }
}

/// Those with blocks.
fn in_blocks() -> impl Iterator<Item = BlockFormat> {
    BlockFormat::ALL.into_iter().filter(|format| format.interleaves())
}

#[test]
fn interleaved_rows_are_those_that_they_were() {
    // Behind the last sixteen too, and where there are no sixteen.
    for rows in [16, 35, 3] {
        let values = |seed: usize| noise(rows * WIDTH, seed as u32);
        let (mut plain, mut file) = (File::of("llamavid"), File::of("llamavid"));
        for (seed, format) in in_blocks().enumerate() {
            plain.tensor(format.name(), &[rows, WIDTH], format, &values(seed));
            file.interleaved(format.name(), &[rows, WIDTH], format, &values(seed));
        }
        let (plain, interleaved) = (plain.checkpoint(), file.checkpoint());
        for format in in_blocks() {
            let name = format.name();
            let read = |file: &Checkpoint| file.read(name, &Device::Cpu).unwrap();
            assert_eq!(values_of(&read(&interleaved)), values_of(&read(&plain)), "{name}");
            assert_eq!(interleaved.format(name).unwrap(), Some(format));
            let is_interleaved = [&plain, &interleaved].map(|file| file.is_interleaved(name).unwrap());
            assert_eq!(is_interleaved, [false, true]);
            let [left, right] = [&interleaved, &plain].map(|file| file.matrix(name).unwrap().unwrap());
            assert_eq!([left.is_interleaved(), right.is_interleaved()], [true, false]);
            assert_eq!(values_of(&left.dequantise().unwrap()), values_of(&right.dequantise().unwrap()));
            assert_eq!(left.bytes(), format.interleave(right.bytes(), WIDTH).unwrap());
        }
    }
}

/// What ggml's own quantisers made of some rows, and what ggml's Python package reads there: `tools/reference/ggml_blocks.py`.
#[test]
fn blocks_of_llama_cpp_are_read_as_there() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/gguf/ggml-blocks.gguf");
    let checkpoint = Checkpoint::from_gguf(GgufFile::open(path.as_ref()).unwrap()).unwrap();
    let read = |name: &str| values_of(&checkpoint.read(name, &Device::Cpu).unwrap());
    let rows = read("rows");
    let square: f64 = rows.iter().map(|row| f64::from(*row).powi(2)).sum();
    for format in BlockFormat::ALL.into_iter().filter(|format| *format != BlockFormat::F32) {
        let name = format.name();
        assert_eq!(checkpoint.format(name).unwrap(), Some(format));
        let (ours, theirs) = (read(name), read(&format!("{name}.read")));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            // A product that is rounded once or twice.
            assert!(
                (ours - theirs).abs() <= 1e-6 * theirs.abs().max(1e-3),
                "{name}: {ours} instead of {theirs}"
            );
        }
        // They are those rows, rounded; and ours lose no more.
        let error = |read: &[f32]| -> f64 {
            read.iter().zip(&rows).map(|(read, row)| f64::from(read - row).powi(2)).sum()
        };
        assert!(error(&theirs) < 0.02 * square, "{name}: {} of {square}", error(&theirs));
        let width = checkpoint.shape(name).unwrap()[1];
        let mut made = vec![0.; rows.len()];
        format.decode(&format.encode(&rows, width).unwrap(), &mut made);
        assert!(error(&made) <= 1.1 * error(&theirs), "{name}: {} {}", error(&made), error(&theirs));
    }
}

#[test]
fn a_description_of_all_kinds() {
    let mut file = File::of("llamavid");
    file.entry("whole", 1, vec![0xff]);
    file.entry("real", 6, 0.5f32.to_le_bytes().to_vec());
    file.entry("flag", 7, vec![1]);
    file.entry("large", 10, u64::MAX.to_le_bytes().to_vec());
    let words = [8u32.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec(), text("a"), text("ß")].concat();
    file.entry("words", 9, words);
    let (_folder, path) = file.on_disk();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.architecture(), "llamavid");
    assert_eq!(file.whole("llamavid.embedding_length"), Some(256));
    assert_eq!((file.whole("whole"), file.whole("large")), (None, Some(u64::MAX)));
    assert_eq!(file.metadata()["whole"], Value::Whole(-1));
    assert_eq!(file.real("real"), Some(0.5));
    assert_eq!(file.metadata()["flag"], Value::Flag(true));
    assert_eq!(file.list("words").unwrap(), [Value::Text("a".into()), Value::Text("ß".into())]);
}

/// llama.cpp's converter makes neighbours of the rows that are half a head apart.
fn turned(values: &[f32], rows: usize) -> Vec<f32> {
    let head = WIDTH / HEADS;
    (0..rows)
        .flat_map(|row| {
            let (first, place) = (row / head * head, row % head);
            let ours = first + place % 2 * head / 2 + place / 2;
            values[ours * WIDTH..(ours + 1) * WIDTH].to_vec()
        })
        .collect()
}

#[test]
fn llamas_have_published_names_and_queries_and_keys_in_their_order() {
    let (queries, keys, other) = (noise(WIDTH * WIDTH, 1), noise(128 * WIDTH, 2), noise(WIDTH * WIDTH, 3));
    for (format, interleaved) in
        [(BlockFormat::Q8_0, false), (BlockFormat::F32, false), (BlockFormat::Q8_0, true)]
    {
        for (architecture, turns) in [("llama", true), ("qwen2", false)] {
            let order = |values: &[f32], rows| if turns { turned(values, rows) } else { values.to_vec() };
            let mut file = File::of(architecture);
            let store = if interleaved { File::interleaved } else { File::tensor };
            store(&mut file, "blk.0.attn_q.weight", &[WIDTH, WIDTH], format, &order(&queries, WIDTH));
            store(&mut file, "blk.0.attn_k.weight", &[128, WIDTH], format, &order(&keys, 128));
            file.tensor("blk.0.attn_v.weight", &[WIDTH, WIDTH], format, &other);
            for (name, seed) in [("token_embd", 4), ("output", 5), ("blk.12.ffn_down", 6)] {
                file.tensor(&format!("{name}.weight"), &[2, WIDTH], format, &noise(2 * WIDTH, seed));
            }
            let checkpoint = file.checkpoint();
            for (name, expected, rows) in [
                ("model.layers.0.self_attn.q_proj.weight", &queries, WIDTH),
                ("model.layers.0.self_attn.k_proj.weight", &keys, 128),
                ("model.layers.0.self_attn.v_proj.weight", &other, WIDTH),
                ("model.embed_tokens.weight", &noise(2 * WIDTH, 4), 2),
                ("lm_head.weight", &noise(2 * WIDTH, 5), 2),
                ("model.layers.12.mlp.down_proj.weight", &noise(2 * WIDTH, 6), 2),
            ] {
                let matrix = checkpoint.matrix(name).unwrap().unwrap();
                assert_eq!(matrix.shape(), (rows, WIDTH));
                let bytes = format.encode(expected, WIDTH).unwrap().into();
                let expected =
                    QuantisedMatrix::new(format, rows, WIDTH, bytes).unwrap().dequantise().unwrap();
                assert_eq!(
                    values_of(&matrix.dequantise().unwrap()),
                    values_of(&expected),
                    "{architecture} {name}"
                );
                let read = checkpoint.read(name, &Device::Cpu).unwrap();
                assert_eq!(
                    values_of(&read),
                    values_of(&matrix.dequantise().unwrap()),
                    "{architecture} {name}"
                );
            }
        }
    }
}

#[test]
fn other_architectures_formats_and_tensors_are_named() {
    refused(&File::of("gemma").bytes(), ErrorKind::Unsupported, "architecture `gemma`");
    let mut file = File::of("llama");
    file.tensor("blk.0.ffn_gate_exps.weight", &[1, WIDTH], BlockFormat::F32, &noise(WIDTH, 1));
    refused(&file.bytes(), ErrorKind::Unsupported, "blk.0.ffn_gate_exps.weight");
    // Numbers of ours are for formats with blocks alone.
    let of_halves = (0x4c56_0001, "number 1280704513");
    for (kind, name) in [(10, "Q2_K"), (20, "IQ4_NL"), (99, "number 99"), of_halves] {
        let mut file = File::of("llama");
        file.tensor("output.weight", &[1, WIDTH], BlockFormat::Q8_0, &noise(WIDTH, 1));
        file.tensors[0].2 = kind;
        let error = file.checkpoint().read("lm_head.weight", &Device::Cpu).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("tensor `output.weight`"), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let mut file = File::of("llama");
    file.tensor("output_norm.weight", &[WIDTH], BlockFormat::F32, &noise(WIDTH, 1));
    file.tensor("output.weight", &[2, WIDTH], BlockFormat::Q4K, &noise(2 * WIDTH, 2));
    let bytes = file.bytes();
    for length in (0..bytes.len() - 40).step_by(3).chain([bytes.len() - 1]) {
        let folder = TempDir::new().unwrap();
        let path = on_disk(&folder, "model.gguf", &bytes[..length]);
        let error = GgufFile::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{length}: {error}");
    }
}

#[test]
fn hostile_heads_are_refused_before_memory_is_taken() {
    let mut file = File::of("llama");
    file.tensor("output.weight", &[2, WIDTH], BlockFormat::Q8_0, &noise(2 * WIDTH, 2));
    let patched = |at: usize, value: u64| {
        let mut bytes = file.bytes();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    refused(&patched(8, u64::MAX), ErrorKind::Invalid, "tensors");
    refused(&patched(16, u64::MAX), ErrorKind::Invalid, "entries");
    refused(&patched(8, 60_000), ErrorKind::Invalid, "");
    refused(&patched(24, u64::MAX), ErrorKind::Invalid, "cut short");
    let changed = |change: &dyn Fn(&mut File)| {
        let mut changed = file.clone();
        change(&mut changed);
        changed.bytes()
    };
    let list = |kind: u32, count: u64| [kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat();
    refused(&changed(&|file| file.entry("a", 9, list(8, u64::MAX))), ErrorKind::Invalid, "a list of");
    refused(&changed(&|file| file.entry("a", 9, list(0, 1 << 40))), ErrorKind::Invalid, "a list of");
    refused(&changed(&|file| file.entry("a", 9, list(9, 1))), ErrorKind::Unsupported, "a list of lists");
    refused(&changed(&|file| file.entry("a", 13, vec![0; 8])), ErrorKind::Invalid, "unknown kind");
    refused(&changed(&|file| file.whole("general.architecture", 1)), ErrorKind::Invalid, "two entries");
    refused(&changed(&|file| file.whole("general.alignment", 3)), ErrorKind::Invalid, "alignment");
    refused(&changed(&|file| file.whole("general.alignment", 0)), ErrorKind::Invalid, "alignment");
    refused(&changed(&|file| file.tensors.push(file.tensors[0].clone())), ErrorKind::Invalid, "two tensors");
    let with_shape = |shape: &[u64]| changed(&|file| file.tensors[0].1 = shape.to_vec());
    refused(&with_shape(&[256, 3]), ErrorKind::Invalid, "beyond the file");
    refused(&with_shape(&[250, 2]), ErrorKind::Invalid, "do not fill blocks");
    refused(&with_shape(&[256, u64::MAX / 256]), ErrorKind::Invalid, "`output.weight`");
    refused(&with_shape(&[u64::MAX, u64::MAX, 2]), ErrorKind::Invalid, "`output.weight`");
    refused(&with_shape(&[1, 1, 1, 1, 512]), ErrorKind::Invalid, "5 dimensions");
    let interleaved = |shape: &[u64]| {
        changed(&|file| (file.tensors[0].1, file.tensors[0].2) = (shape.to_vec(), 0x4c56_0000 | 8))
    };
    refused(&interleaved(&[256, 3]), ErrorKind::Invalid, "beyond the file");
    refused(&interleaved(&[250, 2]), ErrorKind::Invalid, "do not fill blocks");
    refused(&interleaved(&[256, u64::MAX / 256]), ErrorKind::Invalid, "`output.weight`");
    for shape in [[512].as_slice(), &[256, 2, 1], &[256, 0], &[0, 2]] {
        refused(&interleaved(shape), ErrorKind::Invalid, "only matrices");
    }
    refused(
        &[b"GGUF".as_slice(), &1u32.to_le_bytes(), &[0; 64]].concat(),
        ErrorKind::Unsupported,
        "version 1",
    );
    refused(
        &[b"GGUF".as_slice(), &3u32.to_be_bytes(), &[0; 64]].concat(),
        ErrorKind::Unsupported,
        "big-endian",
    );
    refused(b"GGML and more of it", ErrorKind::Invalid, "not a GGUF file");
    let heads = changed(&|file| {
        file.entries.retain(|(key, ..)| !key.contains("head_count"));
        file.whole("llama.attention.head_count", 0);
    });
    refused(&heads, ErrorKind::Invalid, "head_count");
}

/// Takes a matrix from a loader, and its unpacked numbers from a `VarBuilder`.
fn take(checkpoint: &Checkpoint, quantisation: Option<Quantisation>, name: &str) -> Option<BlockFormat> {
    let loader = Loader::quantising(checkpoint.clone(), &LANGUAGE, quantisation, DType::F32, &Device::Cpu);
    let upstream = LANGUAGE.upstream(name).unwrap();
    let shape = checkpoint.shape(&upstream).unwrap();
    loader.matrices()(name, (shape[0], shape[1])).unwrap().map(|matrix| matrix.format())
}

#[test]
fn loading_rounds_numbers_once() {
    let mut file = File::of("llama");
    let layer = |name: &str| format!("blk.0.{name}.weight");
    let matrix = noise(4 * WIDTH, 1);
    file.tensor("token_embd.weight", &[4, WIDTH], BlockFormat::BF16, &matrix);
    file.tensor("output.weight", &[4, WIDTH], BlockFormat::F32, &matrix);
    file.tensor(&layer("ffn_up"), &[4, WIDTH], BlockFormat::F16, &matrix);
    file.tensor(&layer("ffn_gate"), &[4, WIDTH], BlockFormat::Q5K, &matrix);
    file.tensor(&layer("ffn_down"), &[4, 96], BlockFormat::F32, &noise(4 * 96, 2));
    file.tensor(&layer("attn_v"), &[4, 40], BlockFormat::F32, &noise(4 * 40, 3));
    let checkpoint = file.checkpoint();
    let (eight, four) = (Some(Quantisation::Q8_0), Some(Quantisation::Q4K));
    for (name, formats) in [
        ("embed_tokens.weight", [Some(BlockFormat::BF16); 3]),
        ("lm_head.weight", [None, Some(BlockFormat::Q8_0), Some(BlockFormat::Q6K)]),
        ("layers.0.mlp.up_proj.weight", [BlockFormat::F16, BlockFormat::Q8_0, BlockFormat::Q4K].map(Some)),
        ("layers.0.mlp.gate_proj.weight", [Some(BlockFormat::Q5K); 3]),
        ("layers.0.mlp.down_proj.weight", [None, Some(BlockFormat::Q8_0), Some(BlockFormat::Q8_0)]),
        ("layers.0.self_attn.v_proj.weight", [None; 3]),
    ] {
        let actual = [None, eight, four].map(|quantisation| take(&checkpoint, quantisation, name));
        assert_eq!(actual, formats, "{name}");
    }
}

#[test]
fn what_is_rounded_for_decoding_is_interleaved() {
    let mut file = File::of("llama");
    let (matrix, first) = (noise(40 * WIDTH, 1), noise(40 * WIDTH, 2));
    file.tensor("output.weight", &[40, WIDTH], BlockFormat::F32, &matrix);
    file.tensor("token_embd.weight", &[40, WIDTH], BlockFormat::F32, &first);
    file.tensor("blk.0.ffn_up.weight", &[40, WIDTH], BlockFormat::Q4K, &first);
    let checkpoint = file.checkpoint();
    let eight = Some(Quantisation::Q8_0);
    let loader = Loader::quantising(checkpoint, &LANGUAGE, eight, DType::F32, &Device::Cpu);
    let take = |name: &str| loader.matrices()(name, (40, WIDTH)).unwrap().unwrap();
    let output = take("lm_head.weight");
    assert_eq!(output.is_interleaved(), interleaving_pays());
    let tensor = Tensor::from_vec(matrix, (40, WIDTH), &Device::Cpu).unwrap();
    let expected = QuantisedMatrix::quantise(&tensor, BlockFormat::Q8_0).unwrap();
    assert_eq!(values_of(&output.dequantise().unwrap()), values_of(&expected.dequantise().unwrap()));
    // Rows that are read one at a time, and a file that stays mapped.
    assert!(!take("embed_tokens.weight").is_interleaved());
    assert!(!take("layers.0.mlp.up_proj.weight").is_interleaved());

    // The query model always has many rows.
    let mut file = File::of("llamavid");
    file.tensor("Qformer.x.weight", &[40, WIDTH], BlockFormat::F32, &first);
    let checkpoint = file.checkpoint();
    let loader = Loader::quantising(checkpoint, &INSTRUCT_BLIP, eight, DType::F32, &Device::Cpu);
    let matrix = loader.matrices()("query_model.x.weight", (40, WIDTH)).unwrap().unwrap();
    assert_eq!((matrix.format(), matrix.is_interleaved()), (BlockFormat::Q8_0, false));
}

fn written(tensors: &[GgufTensor], write: impl Fn(&mut GgufWriter<Vec<u8>>)) -> Vec<u8> {
    let metadata = [("general.architecture".to_owned(), GgufValue::Text("llamavid".into()))];
    let mut writer = GgufWriter::new(Vec::new(), &metadata, tensors.to_vec()).unwrap();
    write(&mut writer);
    let bytes = writer.finish().unwrap();
    assert_eq!(bytes.len() as u64, GgufWriter::<Vec<u8>>::length(&metadata, tensors).unwrap());
    bytes
}

#[test]
fn rows_are_interleaved_as_they_are_written() {
    let shapes = [40, 16, 3].map(|rows| [rows, 2 * WIDTH]);
    let values = shapes.map(|[rows, columns]| noise(rows * columns, rows as u32));
    for format in in_blocks() {
        let tensors = shapes.map(|shape| GgufTensor::new(shape[0].to_string(), shape, format));
        let interleaved = tensors.clone().map(GgufTensor::interleaved);
        // Three rows are none to interleave.
        assert_eq!(interleaved.clone().map(|tensor| tensor.interleaved), [true, true, false]);
        let as_numbers = |tensors: &[GgufTensor]| {
            written(tensors, |writer| {
                for (values, shape) in values.iter().zip(shapes) {
                    writer.write(&Tensor::from_slice(values, &shape[..], &Device::Cpu).unwrap()).unwrap();
                }
            })
        };
        let in_pieces = |tensors: &[GgufTensor], length: usize| {
            written(tensors, |writer| {
                for values in &values {
                    let blocks = format.encode(values, 2 * WIDTH).unwrap();
                    writer.write_encoded(blocks.chunks(length)).unwrap();
                }
            })
        };
        let folder = TempDir::new().unwrap();
        let (plain, bytes) = (as_numbers(&tensors), as_numbers(&interleaved));
        for length in [1, 1000, 1 << 20] {
            assert_eq!(in_pieces(&tensors, length), plain, "{}", format.name());
            assert_eq!(in_pieces(&interleaved, length), bytes, "{}", format.name());
        }
        let open = |name: &str, bytes: &[u8]| {
            let path = on_disk(&folder, name, bytes);
            let file = GgufFile::open(&path).unwrap();
            let alignment = file.whole("general.alignment");
            (Checkpoint::from_gguf(file).unwrap(), alignment)
        };
        let ((plain, unsaid), (file, alignment)) = (open("plain", &plain), open("interleaved", &bytes));
        assert_eq!((unsaid, alignment), (None, Some(64)));
        for tensor in &interleaved {
            let read = |file: &Checkpoint| file.read(&tensor.name, &Device::Cpu).unwrap();
            assert_eq!(values_of(&read(&file)), values_of(&read(&plain)), "{} {tensor:?}", format.name());
            assert_eq!(file.is_interleaved(&tensor.name).unwrap(), tensor.interleaved);
        }
    }
}

#[test]
fn what_cannot_be_interleaved_is_not_written_so() {
    for (shape, format) in [
        (vec![32 * WIDTH], BlockFormat::Q8_0),
        (vec![2, 32, WIDTH], BlockFormat::Q8_0),
        (vec![15, WIDTH], BlockFormat::Q8_0),
        (vec![32, WIDTH], BlockFormat::F16),
    ] {
        let tensor = GgufTensor::new("x", shape, format);
        assert_eq!(tensor.clone().interleaved(), tensor);
        let error = GgufWriter::new(Vec::new(), &[], vec![GgufTensor { interleaved: true, ..tensor }]);
        assert!(error.unwrap_err().to_string().contains("no rows to interleave"));
    }
    // Pieces that are no whole rows, too few or too many.
    let tensor = GgufTensor::new("x", [16, WIDTH], BlockFormat::Q8_0).interleaved();
    for length in [tensor.bytes() - 1, tensor.bytes() - 272, tensor.bytes() + 272] {
        let mut writer = GgufWriter::new(Vec::new(), &[], vec![tensor.clone()]).unwrap();
        assert!(writer.write_encoded([vec![0; length]]).is_err());
    }
}

#[test]
fn a_file_again_with_its_rows_interleaved() {
    let mut file = File::of("llama");
    file.whole("general.alignment", 32);
    file.entry("a.byte", 1, vec![0xff]);
    let words = [8u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec(), text("ß")].concat();
    file.entry("words", 9, words);
    let layer = |name: &str| format!("blk.0.{name}.weight");
    file.tensor(&layer("ffn_up"), &[40, WIDTH], BlockFormat::Q4K, &noise(40 * WIDTH, 1));
    file.interleaved(&layer("ffn_gate"), &[40, WIDTH], BlockFormat::Q6K, &noise(40 * WIDTH, 2));
    file.tensor(&layer("attn_q"), &[WIDTH, WIDTH], BlockFormat::Q8_0, &noise(WIDTH * WIDTH, 3));
    file.tensor("token_embd.weight", &[40, WIDTH], BlockFormat::Q4_0, &noise(40 * WIDTH, 4));
    file.tensor("output.weight", &[40, WIDTH], BlockFormat::F16, &noise(40 * WIDTH, 5));
    file.tensor("output_norm.weight", &[WIDTH], BlockFormat::F32, &noise(WIDTH, 6));
    // Larger than what is read at a time.
    file.tensor(&layer("ffn_down"), &[4000, 2 * WIDTH], BlockFormat::Q8_0, &noise(8000 * WIDTH, 7));
    let (folder, path) = file.on_disk();
    let source = GgufFile::open(&path).unwrap();
    let (expected, metadata) = (file.checkpoint(), source.metadata().clone());
    let copy = InterleavedCopy::new(source, |name| name != "token_embd.weight").unwrap();
    let mut bytes = Vec::new();
    copy.write(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, copy.length().unwrap());
    let order: Vec<&str> = copy.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(order, file.tensors.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>());

    let copied = GgufFile::open(&on_disk(&folder, "copy.gguf", &bytes)).unwrap();
    assert_eq!(copied.whole("general.alignment"), Some(64));
    let without = |metadata: &BTreeMap<String, Value>| {
        let mut metadata = metadata.clone();
        metadata.remove("general.alignment");
        metadata
    };
    assert_eq!(without(copied.metadata()), without(&metadata));
    let copied = Checkpoint::from_gguf(copied).unwrap();
    let mut interleaved = Vec::new();
    for name in expected.names() {
        let read = |file: &Checkpoint| file.read(name, &Device::Cpu).unwrap();
        assert_eq!(values_of(&read(&copied)), values_of(&read(&expected)), "{name}");
        assert_eq!(copied.format(name).unwrap(), expected.format(name).unwrap());
        interleaved.extend(copied.is_interleaved(name).unwrap().then_some(name));
    }
    assert_eq!(
        interleaved,
        ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj"]
            .map(|module| format!("model.layers.0.{module}.weight"))
    );

    file.tensors[0].2 = 10;
    let (_folder, path) = file.on_disk();
    let error = InterleavedCopy::new(GgufFile::open(&path).unwrap(), |_| true).unwrap_err();
    assert!(error.to_string().contains("blk.0.ffn_up.weight: its numbers are of type Q2_K"), "{error}");
}

#[test]
fn matrices_count_as_used_and_errors_keep_their_kind() {
    let mut file = File::of("llama");
    file.tensor("output.weight", &[4, WIDTH], BlockFormat::Q8_0, &noise(4 * WIDTH, 1));
    file.tensor("output_norm.weight", &[WIDTH], BlockFormat::F32, &noise(WIDTH, 1));
    let mut broken = noise(4 * WIDTH, 1);
    broken[5] = f32::NAN;
    file.tensor("token_embd.weight", &[4, WIDTH], BlockFormat::F32, &broken);
    let checkpoint = file.checkpoint();
    let loader =
        Loader::quantising(checkpoint, &LANGUAGE, Some(Quantisation::Q8_0), DType::F32, &Device::Cpu);
    let matrices = loader.matrices();
    let shape = matrices("lm_head.weight", (5, WIDTH)).unwrap_err();
    let shape = loader.explain(shape);
    assert!(matches!(&shape, Error::ShapeMismatch { key, .. } if key == "output.weight"), "{shape}");
    let broken = loader.explain(matrices("embed_tokens.weight", (4, WIDTH)).unwrap_err());
    assert!(matches!(broken, Error::NotFinite { index: 5, .. }), "{broken}");
    assert!(matrices("layers.0.mlp.up_proj.weight", (4, WIDTH)).unwrap().is_none());
    assert!(matrices("lm_head.weight", (4, WIDTH)).unwrap().is_some());
    loader.var_builder().get(WIDTH, "norm.weight").unwrap();
    let error = loader.finish().unwrap_err();
    assert!(matches!(&error, Error::Unused { keys, .. } if keys == &["token_embd.weight"]), "{error}");
}

#[test]
fn what_costs_little_and_errs_much_has_more_bits() {
    let format = |quantisation: Quantisation, name: &str| quantisation.format(name, 4096).unwrap();
    for quantisation in Quantisation::ALL {
        assert_eq!(format(quantisation, "embed_tokens.weight"), BlockFormat::F16);
        let head = if quantisation == Quantisation::Q8_0 { BlockFormat::Q8_0 } else { BlockFormat::Q6K };
        assert_eq!(format(quantisation, "lm_head.weight"), head);
    }
    let (values, down) = ("layers.7.self_attn.v_proj.weight", "layers.7.mlp.down_proj.weight");
    assert_eq!(format(Quantisation::Q4K, values), BlockFormat::Q6K);
    assert_eq!(format(Quantisation::Q4K, down), BlockFormat::Q4K);
    assert_eq!(format(Quantisation::Q5K, values), BlockFormat::Q5K);
}

#[test]
fn small_parts_between_the_models_stay_as_they_are() {
    for name in ["context.key_proj.weight", "projector.0.weight", "bert_proj.weight"] {
        assert!(TOKENS.upstream(name).is_some());
        assert_eq!(Quantisation::Q4K.format(name, 4096), None);
        assert_eq!(Quantisation::Q8_0.format(name, 4096), None);
    }
}
