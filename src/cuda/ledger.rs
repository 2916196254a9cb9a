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

/// What a line says of a source, without the report.
pub type Line = [String; 4];

fn line(toolchain: &Toolchain, source: Source) -> Line {
    let Toolchain { sm, nvrtc: [major, minor] } = *toolchain;
    [format!("sm_{sm}"), format!("{major}.{minor}"), source.name().to_owned(), source.hash()]
}

/// The lines for a device on which all sources are verified.
pub fn lines(toolchain: &Toolchain) -> Vec<Line> {
    SOURCES.into_iter().map(|source| line(toolchain, source)).collect()
}

/// The first source that is not listed for this device and compiler, as a sentence.
pub fn missing(toolchain: &Toolchain) -> Option<String> {
    let [sm, nvrtc, source, _] =
        lines(toolchain).into_iter().find(|line| !is_listed(VERIFIED, line))?;
    Some(format!("the kernels of {source} have not been verified on {sm} with NVRTC {nvrtc}"))
}

fn is_listed(ledger: &str, line: &Line) -> bool {
    ledger.lines().filter(|each| !each.starts_with('#')).any(|each| {
        let mut words = each.split_whitespace();
        line.iter().all(|expected| words.next() == Some(expected.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_listed_for_its_device_compiler_and_text_alone() {
        let toolchain = Toolchain { sm: 90, nvrtc: [13, 0] };
        let hash = Source::Norm.hash();
        let listed = |ledger: &str| is_listed(ledger, &line(&toolchain, Source::Norm));
        assert!(listed(&format!("# a note\nsm_90 13.0 norm {hash} report.md\n")));
        assert!(!listed(&format!("sm_80 13.0 norm {hash} report.md")));
        assert!(!listed(&format!("sm_90 12.8 norm {hash} report.md")));
        assert!(!listed(&format!("sm_90 13.0 softmax {hash} report.md")));
        assert!(!listed(&format!("sm_90 13.0 norm 0{} report.md", &hash[1..])));
        assert!(!listed(&format!("# sm_90 13.0 norm {hash} report.md")));
    }
}
