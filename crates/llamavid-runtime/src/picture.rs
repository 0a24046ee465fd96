//! Picture files to rows of red, green and blue, with limits that hold before memory is taken, and back.

use std::io::{Cursor, ErrorKind};

use image::codecs::png::PngEncoder;
use image::error::ImageError;
use image::{
    DynamicImage, ExtendedColorType, ImageBuffer, ImageDecoder, ImageEncoder, ImageFormat, ImageReader,
    Limits, Rgb, RgbImage,
};

use crate::{Error, ErrorCode, Result};

/// Largest picture, in pixels: the bound at which Pillow refuses a file as a decompression bomb.
pub const MAX_PICTURE_PIXELS: u64 = 178_956_970;

/// Largest decoded picture, in bytes: alpha or 16 bits a channel need more than the pixels' three bytes.
const MAX_DECODED_BYTES: u64 = 1 << 30;

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Rows from top to bottom without gaps, three bytes a pixel.
    pub data: Vec<u8>,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// Decodes a JPEG, PNG, WebP or GIF (its first frame) and turns it as its EXIF orientation says.
///
/// Alpha is dropped and 16-bit channels keep their high byte, as Pillow's `convert("RGB")` does.
///
/// # Errors
/// `MEDIA_TOO_LARGE` over [`MAX_PICTURE_PIXELS`], `MEDIA_TRUNCATED` for a file that ends too early,
/// `MEDIA_UNREADABLE` for anything else that is no such picture.
pub fn decode_picture(bytes: &[u8]) -> Result<Picture> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| unreadable(error.to_string()))?;
    let Some(format) = reader.format() else {
        return Err(unreadable("the bytes are none of JPEG, PNG, WebP and GIF".to_owned()));
    };
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        // The decoder would fill the missing rows with grey.
        return Err(Error::new(ErrorCode::MediaTruncated, "the JPEG file ends before its picture does"));
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| from_decoder(format, error))?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PICTURE_PIXELS || decoder.total_bytes() > MAX_DECODED_BYTES {
        return Err(Error::new(
            ErrorCode::MediaTooLarge,
            format!(
                "a picture of {width} x {height} pixels is over the limit of {MAX_PICTURE_PIXELS} pixels"
            ),
        )
        .with_hint("Scale the picture down first; the model sees a few hundred pixels a side."));
    }
    let orientation = decoder.orientation().map_err(|error| from_decoder(format, error))?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| from_decoder(format, error))?;
    picture.apply_orientation(orientation);
    let picture = into_rgb(picture);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Picture { data: picture.into_raw(), width, height })
}

/// Encodes `width * height` pixels, rows from top to bottom without gaps, three bytes a pixel, as a PNG file.
///
/// # Errors
/// `INVALID_ARGUMENT` where the bytes are not those of such a picture.
pub fn encode_png(pixels: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let sides = u32::try_from(width).ok().zip(u32::try_from(height).ok());
    let Some((wide, high)) = sides
        .filter(|_| width.checked_mul(height).and_then(|area| area.checked_mul(3)) == Some(pixels.len()))
    else {
        let message = format!("{} bytes are no picture of {width} x {height} pixels", pixels.len());
        return Err(Error::new(ErrorCode::InvalidArgument, message));
    };
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(pixels, wide, high, ExtendedColorType::Rgb8).map_err(|error| {
        Error::new(ErrorCode::InvalidArgument, format!("a picture of {width} x {height} pixels: {error}"))
    })?;
    Ok(file)
}

fn into_rgb(picture: DynamicImage) -> RgbImage {
    match picture {
        DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgb16(_)
        | DynamicImage::ImageRgba16(_) => {
            let wide = picture.into_rgb16();
            ImageBuffer::from_fn(wide.width(), wide.height(), |x, y| {
                Rgb(wide.get_pixel(x, y).0.map(|value| value.to_be_bytes()[0]))
            })
        }
        other => other.into_rgb8(),
    }
}

/// Whether an end-of-image marker follows the last start-of-scan marker. Neither occurs inside compressed data.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|pair| pair == marker);
    match (last([0xFF, 0xDA]), last([0xFF, 0xD9])) {
        (Some(scan), Some(end)) => scan < end,
        // Without a scan it is not a picture at all, which the decoder says better.
        (None, _) => true,
        (Some(_), None) => false,
    }
}

fn from_decoder(format: ImageFormat, error: ImageError) -> Error {
    let message = format!("the {format:?} picture cannot be decoded: {error}");
    match &error {
        ImageError::Limits(_) => Error::new(ErrorCode::MediaTooLarge, message),
        ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
            Error::new(ErrorCode::MediaTruncated, message)
        }
        _ => unreadable(message),
    }
}

fn unreadable(message: String) -> Error {
    Error::new(ErrorCode::MediaUnreadable, message).with_hint("JPEG, PNG, WebP and GIF pictures are read.")
}

#[cfg(test)]
mod tests {
    use image::{GrayAlphaImage, ImageBuffer, Luma, RgbaImage};

    use super::*;

    fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        !crc
    }

    /// A small PNG whose header claims other sides.
    fn png_that_claims(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = encoded(RgbImage::new(2, 2), ImageFormat::Png);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    #[test]
    fn a_claim_of_two_billion_pixels_is_refused_at_once() {
        let error = decode_picture(&png_that_claims(50_000, 40_000)).unwrap_err();
        assert_eq!(error.code, ErrorCode::MediaTooLarge);
        assert!(error.message.contains("50000 x 40000"), "{}", error.message);
        let error = decode_picture(&png_that_claims(0x7FFF_FFFF, 0x7FFF_FFFF)).unwrap_err();
        assert_eq!(error.code, ErrorCode::MediaTooLarge);
    }

    #[test]
    fn alpha_is_dropped_and_grey_repeated() {
        let rgba = RgbaImage::from_raw(1, 2, vec![10, 20, 30, 0, 40, 50, 60, 255]).unwrap();
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let picture = decode_picture(&encoded(rgba.clone(), format)).unwrap();
            assert_eq!((picture.width, picture.height), (1, 2));
            // A lossless WebP may clear the colour of what is fully transparent.
            assert_eq!(picture.data[3..], [40, 50, 60]);
            if format == ImageFormat::Png {
                assert_eq!(picture.data[..3], [10, 20, 30]);
            }
        }
        let grey = GrayAlphaImage::from_raw(2, 1, vec![7, 0, 200, 255]).unwrap();
        assert_eq!(decode_picture(&encoded(grey, ImageFormat::Png)).unwrap().data, [7, 7, 7, 200, 200, 200]);
    }

    #[test]
    fn sixteen_bits_keep_the_high_byte() {
        let wide = ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![0x01FF, 0xFF00]).unwrap();
        assert_eq!(decode_picture(&encoded(wide, ImageFormat::Png)).unwrap().data, [1, 1, 1, 255, 255, 255]);
    }

    #[test]
    fn a_png_is_decoded_to_the_pixels_it_was_encoded_from() {
        let pixels: Vec<u8> = (0..5 * 4 * 3).map(|value| value * 3).collect();
        let picture = decode_picture(&encode_png(&pixels, 5, 4).unwrap()).unwrap();
        assert_eq!(picture, Picture { data: pixels.clone(), width: 5, height: 4 });
        for (width, height) in [(4, 4), (0, 0), (usize::MAX, 3)] {
            assert_eq!(encode_png(&pixels, width, height).unwrap_err().code, ErrorCode::InvalidArgument);
        }
    }

    #[test]
    fn a_palette_is_resolved() {
        let picture = RgbImage::from_fn(4, 4, |x, _| Rgb(if x < 2 { [255, 0, 0] } else { [0, 0, 255] }));
        let decoded = decode_picture(&encoded(picture.clone(), ImageFormat::Gif)).unwrap();
        assert_eq!(decoded.data, picture.into_raw());
    }

    /// A JPEG with an EXIF orientation in front of its other segments.
    fn turned_jpeg(orientation: u8) -> Vec<u8> {
        let plain = encoded(RgbImage::from_fn(16, 8, |x, _| Rgb([(x * 15) as u8; 3])), ImageFormat::Jpeg);
        let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let mut bytes = plain[..2].to_vec();
        bytes.extend([0xFF, 0xE1]);
        bytes.extend((exif.len() as u16 + 2).to_be_bytes());
        bytes.extend(exif);
        bytes.extend(&plain[2..]);
        bytes
    }

    #[test]
    fn the_exif_orientation_is_applied() {
        let upright = decode_picture(&turned_jpeg(1)).unwrap();
        assert_eq!((upright.width, upright.height), (16, 8));
        let turned = decode_picture(&turned_jpeg(6)).unwrap();
        assert_eq!((turned.width, turned.height), (8, 16));
        // Dark was on the left; a quarter turn to the right puts it on top.
        assert!(turned.data[0] < 40 && turned.data[turned.data.len() - 1] > 180);
        assert_eq!(decode_picture(&turned_jpeg(9)).unwrap(), upright);
    }

    #[test]
    fn what_is_cut_or_no_picture_is_an_error() {
        let picture = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 3) as u8, (y * 3) as u8, (x * y) as u8]));
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
            let whole = encoded(picture.clone(), format);
            decode_picture(&whole).unwrap();
            let error = decode_picture(&whole[..whole.len() / 2]).unwrap_err();
            assert!(
                matches!(error.code, ErrorCode::MediaTruncated | ErrorCode::MediaUnreadable),
                "{format:?}: {error:?}"
            );
        }
        for bytes in [&b""[..], b"<html>", b"\xFF\xD8\xFF", b"GIF89a"] {
            let code = decode_picture(bytes).unwrap_err().code;
            assert!(
                matches!(code, ErrorCode::MediaTruncated | ErrorCode::MediaUnreadable),
                "{bytes:?}: {code}"
            );
        }
    }
}
