#[derive(Debug, clap::Subcommand)]
pub(crate) enum Segment {
    X,
}
impl Segment {
    pub(crate) async fn run(self, _s: &crate::session::Session) -> crate::error::Result<()> {
        Ok(())
    }
}
