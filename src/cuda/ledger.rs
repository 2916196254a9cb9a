//! Which sources have been seen to give right results on which kind of device, compiled by which NVRTC. A source that is
//! not listed, as one that was changed, is not run unless it is asked for.

use super::device::Toolchain;
use super::kernel::Source;

/// A line for each: compute capability, NVRTC, source, its hash, the report that says what was seen.
const VERIFIED: &str = include_str!("verified.txt");

/// All that the path launches.
pub const SOURCES: [Source; 6] = [
    Source::Norm,
    Source::Activation,
    Source::Reduce,
    Source::AttentionSmall,
    Source::AttentionLong,
    Source::Softmax,
];

/// The first source that is not listed for this device and compiler, as a sentence.
pub fn missing(toolchain: &Toolchain) -> Option<String> {
    let missing = SOURCES.into_iter().find(|&source| !is_listed(VERIFIED, toolchain, source))?;
    let Toolchain { sm, nvrtc: [major, minor] } = *toolchain;
    Some(format!(
        "the kernels of {} have not been verified on sm_{sm} with NVRTC {major}.{minor}",
        missing.name()
    ))
}

fn is_listed(ledger: &str, toolchain: &Toolchain, source: Source) -> bool {
    let Toolchain { sm, nvrtc: [major, minor] } = *toolchain;
    let (sm, nvrtc) = (format!("sm_{sm}"), format!("{major}.{minor}"));
    let hash = source.hash();
    ledger.lines().filter(|line| !line.starts_with('#')).any(|line| {
        let mut words = line.split_whitespace();
        [sm.as_str(), nvrtc.as_str(), source.name(), hash.as_str()]
            .into_iter()
            .all(|expected| words.next() == Some(expected))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_listed_for_its_device_compiler_and_text_alone() {
        let toolchain = Toolchain { sm: 90, nvrtc: [13, 0] };
        let hash = Source::Norm.hash();
        let listed = |line: &str| is_listed(line, &toolchain, Source::Norm);
        assert!(listed(&format!("# a note\nsm_90 13.0 norm {hash} report.md\n")));
        assert!(!listed(&format!("sm_80 13.0 norm {hash} report.md")));
        assert!(!listed(&format!("sm_90 12.8 norm {hash} report.md")));
        assert!(!listed(&format!("sm_90 13.0 softmax {hash} report.md")));
        assert!(!listed(&format!("sm_90 13.0 norm 0{} report.md", &hash[1..])));
        assert!(!listed(&format!("# sm_90 13.0 norm {hash} report.md")));
    }
}
