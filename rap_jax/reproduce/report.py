"""The report of a table: report.md, report.html and pictures, in the folder `tables/NAME` of the plan."""

from pathlib import Path

from rap_jax._runtime.integrity import write_atomically
from rap_jax.reproduce.collect import Measured
from rap_jax.reproduce.epochs import late_epochs
from rap_jax.reproduce.figures import draw
from rap_jax.reproduce.html import claim_html, table_html
from rap_jax.reproduce.hypotheses import hypothesis
from rap_jax.reproduce.markdown import page_markdown, table_markdown


def write_report(measured: Measured, out: Path, failures: dict[str, str]) -> Path:
    """Writes the report of a table as far as it is done, each file whole or not at all.

    Args:
      measured: the table.
      out: folder of the plan.
      failures: name of a job that has failed -> its message; those of other tables are passed over.

    Returns:
      The folder of the report.
    """
    folder = out / "tables" / measured.table.name
    folder.mkdir(parents=True, exist_ok=True)
    figures, epochs = draw(measured), late_epochs(measured, out)
    for figure in figures:
        write_atomically(folder / f"{figure.name}.png", figure.png)
    page = hypothesis(measured)
    if page is not None:
        write_atomically(folder / "hypothesis.md", page_markdown(page))
        write_atomically(folder / "hypothesis.html", claim_html(page))
    html = table_html(measured, out, failures=failures, figures=figures, epochs=epochs)
    write_atomically(folder / "report.html", html)
    markdown = table_markdown(measured, failures=failures, figures=figures, epochs=epochs)
    write_atomically(folder / "report.md", markdown)
    return folder
