//! A language model of random weights in llama.cpp's format. Its blocks are drawn and not made of numbers, so a file of any size
//! takes little memory and as long as the disk does.

use std::fs::File;
use std::path::Path;

use candle_core::Shape;
use llamavid_convert::language_gguf;
use llamavid_models::language_model::{LanguageModel, LanguageModelConfig};
use llamavid_runtime::{TokenizerFiles, WeightShape, weight_shapes};
use llamavid_weights::writer::{GgufTensor, GgufWriter, WholePages};
use llamavid_weights::{BlockFormat, Quantisation};
use serde_json::json;

use crate::Result;
use crate::tokenizers;
use crate::values::{Values, is_norm};

/// Positions of the context: room for an hour of video.
const POSITIONS: usize = 16_384;

/// How the matrices of a file are stored.
#[derive(Debug, Clone, Copy)]
enum Format {
    Plain(BlockFormat),
    /// The mix that `llamavid convert --quantize` writes.
    Mixed(Quantisation),
}

impl Format {
    fn parse(name: &str) -> Result<Self> {
        let mixed = Quantisation::ALL.into_iter().find(|format| format.name() == name);
        match (name, mixed) {
            (_, Some(mixed)) => Ok(Self::Mixed(mixed)),
            ("f32", _) => Ok(Self::Plain(BlockFormat::F32)),
            ("f16", _) => Ok(Self::Plain(BlockFormat::F16)),
            _ => Err(format!("the format {name:?} is none of f32, f16 and {:?}", Quantisation::ALL).into()),
        }
    }

    fn of(self, weight: &WeightShape) -> BlockFormat {
        let columns = weight.shape.dims().last().copied().unwrap_or(1);
        let matrix = match self {
            Self::Plain(format) => Some(format),
            Self::Mixed(mixed) => mixed.format(&weight.name, columns),
        };
        matrix.filter(|_| weight.is_matrix).unwrap_or(BlockFormat::F32)
    }
}

/// Writes the decoder of LLaMA 7B (`7b`), of TinyLlama's dimensions (`1b`) or of the embedded model's (`tiny`). Its weights are the
/// same whether rows are interleaved or not.
///
/// # Errors
/// Another size or format, and those of the disk.
pub fn write(path: &Path, size: &str, format: &str, interleave: bool) -> Result<()> {
    let (config, format) = (config(size)?, Format::parse(format)?);
    let weights = weight_shapes(|vb| LanguageModel::new(&config, vb))?;
    let tensors: Vec<GgufTensor> = weights
        .iter()
        .map(|weight| {
            let name = language_gguf::name(&weight.name)
                .ok_or_else(|| format!("llama.cpp has no name for {}", weight.name))?;
            let tensor = GgufTensor::new(name, weight.shape.dims(), format.of(weight));
            Ok(if interleave { tensor.interleaved() } else { tensor })
        })
        .collect::<Result<_>>()?;
    let side = tempfile::tempdir()?;
    tokenizers::write_pieces(side.path(), config.vocab_size)?;
    let tokenizer = TokenizerFiles::in_folder(side.path())?.ok_or("the tokenizer was not written")?;
    let mix = match format {
        Format::Mixed(mix) => mix,
        Format::Plain(_) => Quantisation::Q8_0,
    };
    let mut metadata = language_gguf::metadata(&config, size, mix, &tokenizer)?;
    if let Format::Plain(_) = format {
        // The mixes have numbers there; a reader then looks at the tensors.
        metadata.retain(|(key, _)| key != "general.file_type");
    }
    // A file of its whole length under the right name is whole.
    let unfinished = path.with_extension("part");
    let out = WholePages::new(File::create(&unfinished)?);
    let mut writer = GgufWriter::new(out, &metadata, tensors.clone())?;
    let mut values = Values::new(7);
    for tensor in &tensors {
        let shape = Shape::from(tensor.shape.as_slice());
        match tensor.format {
            BlockFormat::F32 if is_norm(&tensor.name) => {
                writer.write(&values.tensor(&tensor.name, candle_core::DType::F32, &shape)?)?;
            }
            format => writer.write_encoded(values.blocks(format, shape.elem_count())?)?,
        }
    }
    writer.finish()?.finish()?;
    std::fs::rename(unfinished, path)?;
    Ok(())
}

fn config(size: &str) -> Result<LanguageModelConfig> {
    let (width, inner, layers, heads, kv_heads, vocabulary) = match size {
        "7b" => (4096, 11_008, 32, 32, 32, 32_000),
        "1b" => (2048, 5632, 22, 32, 4, 32_000),
        "tiny" => (128, 384, 5, 4, 4, 1195),
        other => return Err(format!("the size {other:?} is none of 7b, 1b, tiny").into()),
    };
    let config = json!({ "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5 });
    Ok(LanguageModelConfig::from_json(&serde_json::to_vec(&config)?)?)
}

#[cfg(test)]
mod tests {
    use llamavid_runtime::{Cancellation, Device, LanguageModel, Precision, Split};
    use llamavid_weights::Checkpoint;
    use llamavid_weights::gguf::GgufFile;

    use super::*;

    #[test]
    fn a_written_file_loads_strictly_in_each_format() {
        let folder = tempfile::tempdir().unwrap();
        for format in ["f32", "f16", "q8_0", "q4_0", "q4_k", "q6_k"] {
            let path = folder.path().join(format!("{format}.gguf"));
            write(&path, "tiny", format, false).unwrap();
            let device = Device::open("cpu").unwrap();
            let loading = LanguageModel::load(
                path,
                device,
                Precision::default(),
                Split::Layers,
                Cancellation::default(),
            )
            .wait();
            let model = loading.unwrap_or_else(|error| panic!("{format}: {error}"));
            assert_eq!(model.context_length(), POSITIONS);
            assert!(model.count_tokens("what is there?") > 0);
        }
    }

    #[test]
    fn interleaved_weights_are_the_same_ones() {
        let folder = tempfile::tempdir().unwrap();
        for format in ["f16", "q8_0", "q4_0"] {
            let open = |interleave| {
                let path = folder.path().join(format!("{format}-{interleave}.gguf"));
                write(&path, "tiny", format, interleave).unwrap();
                Checkpoint::from_gguf(GgufFile::open(&path).unwrap()).unwrap()
            };
            let (plain, interleaved) = (open(false), open(true));
            let names: Vec<&str> = plain.names().collect();
            assert_eq!(names, interleaved.names().collect::<Vec<_>>());
            for name in &names {
                let read = |file: &Checkpoint| file.read(name, &candle_core::Device::Cpu).unwrap();
                let values = |file| read(file).flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(values(&plain), values(&interleaved), "{format} {name}");
            }
            let is_interleaved = |name: &&&str| interleaved.is_interleaved(name).unwrap();
            let count = names.iter().filter(is_interleaved).count();
            // Seven matrices of each of five layers, and the output's.
            assert_eq!(count, if format == "f16" { 0 } else { 36 });
        }
    }

    #[test]
    fn others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(&folder.path().join("x.gguf"), "2b", "f32", false).is_err());
        assert!(write(&folder.path().join("x.gguf"), "tiny", "q3", false).is_err());
    }
}
