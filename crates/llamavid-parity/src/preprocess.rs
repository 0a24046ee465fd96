//! Compares resize, crop, padding and normalisation with what the reference's image processor made.

use candle_core::{Device, Tensor};
use llamavid_models::preprocess::{Fit, Preprocessing, RgbImage};

use crate::case::{PreprocessCases, Recorded};
use crate::report::{FolderReport, PIXELS};

/// Compares every picture at every size in every mode; bytes must be equal.
pub fn compare(cases: &PreprocessCases, recorded: &Recorded, report: &mut FolderReport) {
    for case in &cases.cases {
        report.enter(&case.picture);
        let name = format!("{}/{}", case.size, case.mode);
        let Some(picture) = recorded.get(&format!("{}/rgb", case.picture)) else {
            report.failed(&name, "the picture was not recorded".to_owned());
            continue;
        };
        let fit = match fit(&case.mode) {
            Ok(fit) => fit,
            Err(problem) => {
                report.failed(&name, problem);
                continue;
            }
        };
        let preprocessing = Preprocessing::clip(case.size, fit);
        let (bytes, pixels) = match one(&preprocessing, picture) {
            Ok(made) => made,
            Err(problem) => {
                report.failed(&name, problem);
                continue;
            }
        };
        let mut compared = false;
        if let Some(expected) = recorded.get(&format!("{}/uint8", case.tensors)) {
            report.tensor(&format!("{name}/uint8"), &bytes, expected, 0.0);
            compared = true;
        }
        if let Some(expected) = recorded.get(&format!("{}/pixel_values", case.tensors)) {
            report.tensor(&format!("{name}/pixel_values"), &pixels, expected, PIXELS);
            compared = true;
        }
        if !compared {
            report.failed(&name, "nothing was recorded for it".to_owned());
        }
    }
}

/// How a case's picture becomes a square.
pub fn fit(mode: &str) -> Result<Fit, String> {
    match mode {
        "crop" => Ok(Fit::Crop),
        "pad" => Ok(Fit::Pad),
        other => Err(format!("mode `{other}` is neither `crop` nor `pad`")),
    }
}

/// The bytes (S, S, 3) and the pixels (3, S, S) of a picture (H, W, 3).
pub fn one(preprocessing: &Preprocessing, picture: &Tensor) -> Result<(Tensor, Tensor), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (height, width, _channels) = picture.dims3().map_err(|error| text(&error))?;
    let data = picture.flatten_all().and_then(|flat| flat.to_vec1::<u8>()).map_err(|error| text(&error))?;
    let image = RgbImage { data: &data, width, height, stride: width * 3 };
    let side = preprocessing.size;
    let bytes = preprocessing.resize(&image).map_err(|error| text(&error))?;
    let mut pixels = vec![0f32; 3 * side * side];
    preprocessing.pixels(&image, &mut pixels).map_err(|error| text(&error))?;
    let bytes = Tensor::from_vec(bytes, (side, side, 3), &Device::Cpu).map_err(|error| text(&error))?;
    let pixels = Tensor::from_vec(pixels, (3, side, side), &Device::Cpu).map_err(|error| text(&error))?;
    Ok((bytes, pixels))
}
