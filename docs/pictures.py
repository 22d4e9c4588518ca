"""The pictures of committed results, for pages that show them: they lie outside of the pages."""

from pathlib import Path

from mkdocs.structure.files import File

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def on_files(files, config):
    for picture in sorted(RESULTS.glob("*/*.png")):
        place = f"results/{picture.relative_to(RESULTS)}"
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    return files
