//! The weights as the reference's stages 2 and 3 write them, and LAVIS's file of the visual encoder.

use std::fs::File;
use std::io::{BufWriter, Error};
use std::path::Path;

use candle_core::{DType, Shape};
use llamavid_models::language_model::LanguageModel;
use llamavid_models::token_generation::TokenGenerator;
use llamavid_models::visual_encoder::{VisualEncoder, VisualEncoderConfig};
use llamavid_runtime::{WeightShape, weight_shapes};
use llamavid_weights::Part;
use llamavid_weights::writer::write_torch_streamed;
use serde_json::{Map, json};

use crate::Result;
use crate::sizes::Size;
use crate::tokenizers::write_json;
use crate::values::Values;

/// A tensor that will be written.
type Announced = (String, DType, Shape);

/// Writes `config.json`, the shards with their index, and `eva_vit_g.pth`.
pub fn write(folder: &Path, size: Size) -> Result<()> {
    write_json(&folder.join("config.json"), &size.config())?;
    write_json(
        &folder.join("generation_config.json"),
        &json!({ "_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2, "max_length": 4096,
            "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6, "transformers_version": "4.31.0" }),
    )?;
    let mut values = Values::new(7);
    write_shards(folder, size, &mut values)?;
    write_file(&folder.join("eva_vit_g.pth"), "eva_vit_g", &visual_encoder_file(size)?, &mut values)
}

/// Cut as `save_pretrained` does: a shard ends before the tensor that would make it too large.
fn write_shards(folder: &Path, size: Size, values: &mut Values) -> Result<()> {
    let mut shards: Vec<Vec<Announced>> = vec![Vec::new()];
    let (mut shard_bytes, mut total) = (0, 0);
    for tensor in shard_tensors(size)? {
        let bytes = (tensor.1.size_in_bytes() * tensor.2.elem_count()) as u64;
        if shard_bytes + bytes > size.shard_bytes() && shard_bytes > 0 {
            shards.push(Vec::new());
            shard_bytes = 0;
        }
        shard_bytes += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    let count = shards.len();
    let mut map = Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let archive = format!("pytorch_model-{:05}-of-{count:05}", index + 1);
        let file = format!("{archive}.bin");
        write_file(&folder.join(&file), &archive, shard, values)?;
        map.extend(shard.iter().map(|(name, ..)| (name.clone(), file.clone().into())));
    }
    write_json(
        &folder.join("pytorch_model.bin.index.json"),
        &json!({ "metadata": { "total_size": total }, "weight_map": map }),
    )
}

fn write_file(path: &Path, archive: &str, tensors: &[Announced], values: &mut Values) -> Result<()> {
    let out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    write_torch_streamed(out, archive, tensors, |index| {
        let (name, dtype, shape) = &tensors[index];
        values.tensor(name, *dtype, shape).map_err(|error| Error::other(error.to_string()))
    })?;
    Ok(())
}

/// All parts with their published names, and the buffers that the reference writes among them.
fn shard_tensors(size: Size) -> Result<Vec<Announced>> {
    let model = size.model()?;
    let shapes = weight_shapes(|vb| {
        VisualEncoder::new(&model.visual, vb.pp(Part::VisualEncoder.name()))?;
        TokenGenerator::new(&model.tokens, vb.pp(Part::TokenGenerator.name()))?;
        LanguageModel::new(&model.language, vb.pp(Part::LanguageModel.name()))
    })?;
    let mut tensors = Vec::new();
    for WeightShape { name: ours, shape, .. } in shapes {
        let name = Part::published(&ours).ok_or_else(|| format!("{ours} has no published name"))?;
        tensors.push((name, DType::F16, shape));
    }
    let half_head = model.language.head_dim / 2;
    tensors.extend((0..model.language.layers).map(|layer| {
        (format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq"), DType::F32, Shape::from(half_head))
    }));
    let positions = Shape::from((1, model.tokens.query.max_positions));
    tensors.push(("model.vlm_att_encoder.bert.embeddings.position_ids".into(), DType::I64, positions));
    // In the order of the layers, as modules give them.
    tensors.sort_by_key(|(name, ..)| (name == "lm_head.weight", layer(name), name.clone()));
    Ok(tensors)
}

/// LAVIS's file: one block more than the model uses.
fn visual_encoder_file(size: Size) -> Result<Vec<Announced>> {
    let VisualEncoderConfig::Eva(mut eva) = size.model()?.visual else {
        return Err("the published models have an EVA visual encoder".into());
    };
    eva.depth += 1;
    let shapes = weight_shapes(|vb| VisualEncoder::new(&VisualEncoderConfig::Eva(eva), vb))?;
    Ok(shapes.into_iter().map(|weight| (weight.name, DType::F16, weight.shape)).collect())
}

/// The number in a name like `model.layers.7.…`; what has none comes first.
fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}
