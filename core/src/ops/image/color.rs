//! Embedded colour profiles: the picture is converted to sRGB, so that a file without a profile looks as the original does.

use super::bitmap::Bitmap;
use crate::error::Result;
use crate::ops::OpCtx;
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

/// Converts from the embedded profile to sRGB. A profile that is damaged, of another colour model (CMYK was converted by the decoder), or
/// sRGB itself changes nothing.
pub(super) fn to_srgb(ctx: &OpCtx<'_>, bitmap: &mut Bitmap, icc: &[u8]) -> Result<()> {
    let Ok(profile) = ColorProfile::new_from_slice(icc) else { return Ok(()) };
    let layout = match (bitmap.channels, profile.color_space) {
        (3, DataColorSpace::Rgb) => Layout::Rgb,
        (4, DataColorSpace::Rgb) => Layout::Rgba,
        (1, DataColorSpace::Gray) => Layout::Gray,
        (2, DataColorSpace::Gray) => Layout::GrayAlpha,
        _ => return Ok(()),
    };
    let srgb = ColorProfile::new_srgb();
    let same = |a: moxcms::Xyzd, b: moxcms::Xyzd| (a.x - b.x).abs() + (a.y - b.y).abs() + (a.z - b.z).abs() < 2e-3;
    let primaries = [
        (profile.red_colorant, srgb.red_colorant),
        (profile.green_colorant, srgb.green_colorant),
        (profile.blue_colorant, srgb.blue_colorant),
    ];
    let named_srgb = icc.windows(4).any(|w| w == b"sRGB");
    if layout == Layout::Rgb && named_srgb && primaries.into_iter().all(|(a, b)| same(a, b)) {
        return Ok(());
    }
    let Ok(transform) = profile.create_transform_8bit(layout, &srgb, layout, TransformOptions::default()) else { return Ok(()) };
    bitmap.for_bands(ctx, &|_, band| {
        let source = band.to_vec();
        // The two lengths are equal and a multiple of the layout, the only reasons for an error.
        let _ = transform.transform(&source, band);
        Ok(())
    })
}
