//! How many of the language model's layers each device gets.

use candle_core::{DType, Device as TensorDevice};

use crate::device::StageDevice;
use crate::gpus::gpus;
use crate::model_folder::ModelFolder;
use crate::plan::language_bytes;
use crate::{DeviceKind, Result};

/// Share of a graphics processor's free memory that layers may take; the rest is for keys, values and steps.
const FOR_LAYERS: f64 = 0.8;

/// Layers of `folder`'s decoder for each device, in their order.
///
/// Graphics processors get as many as their free memory holds, each in proportion to it; the CPU gets what is left.
pub(crate) fn place_layers(
    folder: &ModelFolder,
    dtype: DType,
    devices: &[StageDevice],
) -> Result<Vec<(TensorDevice, usize)>> {
    let layers = folder.config().language.layers;
    let a_layer = (language_bytes(folder, dtype)? / layers.max(1) as u64).max(1);
    let known =
        if devices.iter().any(|device| device.kind == DeviceKind::Cuda) { gpus() } else { Vec::new() };
    let room: Vec<Option<usize>> = devices
        .iter()
        .map(|device| {
            let gpu = known.iter().find(|gpu| gpu.device == device.name)?;
            Some((gpu.available as f64 * FOR_LAYERS) as usize / a_layer as usize)
        })
        .collect();
    Ok(devices.iter().map(|device| device.tensors.clone()).zip(share(layers, &room)).collect())
}

/// Shares out layers. `room` is how many a device holds; those without a number share what the others do not hold.
fn share(layers: usize, room: &[Option<usize>]) -> Vec<usize> {
    let known: usize = room.iter().flatten().sum();
    let unknown = room.iter().filter(|room| room.is_none()).count();
    let held = if unknown == 0 { layers } else { layers.min(known) };
    // Ends of the shares, rounded, so that they add up.
    let (mut before, mut rest) = (0, 0);
    room.iter()
        .map(|room| match room {
            Some(room) => {
                let start = (held * before).checked_div(known).unwrap_or(0);
                before += room;
                (held * before).checked_div(known).unwrap_or(0) - start
            }
            None => {
                let left = layers - held;
                rest += 1;
                left * rest / unknown - left * (rest - 1) / unknown
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use candle_core::{Device as TensorDevice, Tensor};
    use llamavid_models::language_model::{LoraConfig, LoraTarget};
    use llamavid_models::observer::Blind;
    use llamavid_weights::writer::write_safetensors;

    use super::*;
    use crate::{Device, ErrorCode, Split};

    #[test]
    fn layers_are_shared_by_memory() {
        assert_eq!(share(32, &[None]), [32]);
        assert_eq!(share(32, &[None, None]), [16, 16]);
        assert_eq!(share(33, &[None, None]), [16, 17]);
        assert_eq!(share(32, &[Some(40), Some(40)]), [16, 16]);
        assert_eq!(share(32, &[Some(40), Some(20)]), [21, 11]);
        // What a graphics processor has no room for is left to the CPU.
        assert_eq!(share(32, &[Some(10), None]), [10, 22]);
        assert_eq!(share(32, &[Some(100), None]), [32, 0]);
        assert_eq!(share(32, &[Some(0), None]), [0, 32]);
        for room in [vec![Some(7), Some(9), Some(3)], vec![Some(5), None, Some(6), None]] {
            assert_eq!(share(40, &room).iter().sum::<usize>(), 40, "{room:?}");
        }
    }

    fn random_model() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/random-model")
    }

    /// Hidden states and logits of a prompt in two chunks and of a step behind it.
    fn run(folder: &Path, device: &str) -> Vec<Vec<f32>> {
        let folder = ModelFolder::open(folder).unwrap();
        let device = Device::open(device).unwrap();
        let model = folder.placed_language_model(DType::F32, &device, Split::Layers).unwrap();
        assert_eq!(model.config().layers, 2);
        let mut cache = model.new_cache(4);
        let mut seen = Vec::new();
        for ids in [&[1u32, 20, 30, 40, 50][..], &[60, 70, 80], &[90]] {
            let embeds = model.embed(ids).unwrap().unsqueeze(0).unwrap();
            let hidden = model.forward(&embeds, &mut cache, None, &mut Blind).unwrap();
            let logits = model.logits(&hidden, &mut Blind).unwrap();
            seen.extend(
                [hidden, logits].map(|tensor: Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap()),
            );
        }
        assert_eq!(cache.len(), 9);
        seen
    }

    #[test]
    fn two_stages_give_what_one_gives() {
        assert_eq!(run(&random_model(), "cpu,cpu"), run(&random_model(), "cpu"));
    }

    #[test]
    fn more_devices_than_layers_leave_some_idle() {
        assert_eq!(run(&random_model(), "cpu,cpu,cpu"), run(&random_model(), "cpu"));
    }

    #[test]
    fn adapters_go_with_their_layers() {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(random_model()).unwrap().flatten() {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
            }
        }
        let lora = LoraConfig { rank: 2, alpha: 4., targets: vec![LoraTarget::ValueProj] };
        let described = lora.to_json("./llm", 0.).to_string();
        std::fs::write(folder.path().join("adapter_config.json"), described).unwrap();
        let ramp = |rows: usize, columns: usize| {
            let values: Vec<f32> = (0..rows * columns).map(|place| (place % 13) as f32 / 50.).collect();
            Tensor::from_vec(values, (rows, columns), &TensorDevice::Cpu).unwrap()
        };
        let adapters = (0..2)
            .flat_map(|layer| {
                let name = format!("base_model.model.model.layers.{layer}.self_attn.v_proj.lora");
                [(format!("{name}_A.weight"), ramp(2, 48)), (format!("{name}_B.weight"), ramp(48, 2))]
            })
            .collect();
        let mut file = std::fs::File::create(folder.path().join("adapter_model.safetensors")).unwrap();
        write_safetensors(&mut file, &adapters, &Default::default()).unwrap();
        let adapted = run(folder.path(), "cpu");
        assert_eq!(run(folder.path(), "cpu,cpu"), adapted);
        assert_ne!(run(&random_model(), "cpu"), adapted);
    }

    #[test]
    fn lists_of_devices_are_checked() {
        for name in ["cpu,", "cpu,auto", "cpu,gpu", ",cpu"] {
            assert_eq!(Device::open(name).unwrap_err().code, ErrorCode::InvalidArgument, "{name}");
        }
        let device = Device::open("cpu,cpu").unwrap();
        assert_eq!((device.name(), device.stages().len()), ("cpu,cpu", 2));
        assert!(matches!(device.tensors(), TensorDevice::Cpu));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_missing_device_of_a_list_says_so() {
        assert_eq!(Device::open("cpu,cuda:1").unwrap_err().code, ErrorCode::DeviceUnavailable);
    }
}
