"""Real data for the benchmark, from package registries only, fetched into a cache folder and never shipped.

Every function gives numpy arrays or text, with the part to calibrate on and the part to evaluate on disjoint (by
picture, article, line or file).
`Case.source` states where each set comes from and its licence.
"""

from __future__ import annotations

import bz2
import html
import io
import json
import re
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from tools.bench.registry import debian, fetch, source

MAPPED = Path(__file__).with_name("stamps_imagenet.json")
"""For pictures of `tuxpaint-stamps-default`, the ImageNet class indices that are right."""

GENSIM = "gensim==4.4.0"
WIKI = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def fashion_folder(cache: Path) -> Path:
    """The folder of the idx files of Fashion-MNIST (MIT)."""
    return debian(cache, "dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"


def stamps(cache: Path) -> tuple[np.ndarray, list[list[int]], np.ndarray]:
    """Photo cut-outs: two views of each of the 164 mapped pictures, their right ids, and 256 views of 128 others.

    Returns:
        Pictures ``n 3 224 224`` as EfficientNet-Lite0 takes them, the ids for each, and pictures to calibrate on.
    """
    mapped = json.loads(MAPPED.read_text())
    views, rest = ((part.astype(np.float32) - 127) / 128 for part in stamp_views(cache))
    return views, [ids for ids in mapped.values() for _ in range(2)], rest


def stamp_views(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """The views of the mapped pictures and of 128 others, two of each in a row: RGB bytes ``n 3 224 224``."""
    folder = debian(cache, "tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    mapped: dict[str, list[int]] = json.loads(MAPPED.read_text())
    others = sorted(
        path
        for path in folder.rglob("*.png")
        if str(path.relative_to(folder))[:-4] not in mapped and path.relative_to(folder).parts[0] != "symbols"
    )
    chosen = np.random.RandomState(0).permutation(len(others))[:128]
    ready = cache / "stamps-views.npz"
    if not ready.exists():
        views = [_view(folder / f"{name}.png", second=second) for name in mapped for second in (False, True)]
        rest = [_view(others[i], second=second) for i in chosen for second in (False, True)]
        np.savez(ready, views=np.stack(views), rest=np.stack(rest))
    with np.load(ready) as stored:
        return stored["views"], stored["rest"]


def _view(path: Path, *, second: bool) -> np.ndarray:
    """View 1 of a picture: on white; view 2: on grey and flipped. ``3 224 224`` bytes."""
    from PIL import Image, ImageOps

    picture = Image.open(path).convert("RGBA")
    box = picture.getchannel("A").getbbox()
    picture = picture.crop(box) if box else picture
    side = round(max(picture.size) * 1.24)
    ground = Image.new("RGBA", (side, side), (128, 128, 128, 255) if second else (255, 255, 255, 255))
    ground.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    flat = ground.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    return np.asarray(ImageOps.mirror(flat) if second else flat).transpose(2, 0, 1)


def snippets(cache: Path) -> tuple[list[str], np.ndarray]:
    """10,605 movie snippets (vaderSentiment, MIT) and whether people rated them positive."""
    with zipfile.ZipFile(source(cache, "vaderSentiment==0.5")) as outer:
        member = next(name for name in outer.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(member))) as inner:
            file = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            lines = file.read().decode("latin-1").splitlines() if file else []
    rows = [line.split("\t") for line in lines if line.count("\t") >= 2]
    return [row[2].strip() for row in rows], np.array([float(row[1]) > 0 for row in rows], dtype=np.int64)


def wiki_articles(cache: Path) -> list[str]:
    """Clean text of the Wikipedia articles inside gensim, those over 1,500 characters."""
    text = bz2.decompress((fetch(cache, GENSIM) / WIKI).read_bytes()).decode("utf-8")
    articles = (_plain(found) for found in re.findall(r"<text[^>]*>(.*?)</text>", text, re.DOTALL))
    return [article for article in articles if len(article) > 1500]


def _plain(text: str) -> str:
    """The paragraphs of an article in wiki markup."""
    text = html.unescape(text)
    text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref[^>]*>.*?</ref>|<math>.*?</math>", "", text, flags=re.DOTALL)
    for pattern in (r"\{\{[^{}]*\}\}", r"\{\|(?:(?!\{\|).)*?\|\}"):
        before = None
        while before != text:
            before, text = text, re.sub(pattern, "", text, flags=re.DOTALL)
    text = re.sub(r"\[\[(?:File|Image|Category|[a-z-]{2,8}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S*\s*([^\]]*)\]", r"\1", text)
    text = html.unescape(re.sub(r"<[^>]+>|'{2,}", "", text))
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if len(line) > 120 and line[0] not in "|!{*#:;=")


EXTENSIONS = {
    "c": "c", "h": "c", "cpp": "cpp", "hpp": "cpp", "css": "css", "csv": "csv", "gif": "gif", "gz": "gzip",
    "html": "html", "ini": "ini", "ipynb": "ipynb", "jpg": "jpeg", "js": "javascript", "json": "json",
    "jsonl": "jsonl", "md": "markdown", "npy": "npy", "npz": "npz", "onnx": "onnx", "pdf": "pdf", "pkl": "pickle",
    "pl": "perl", "pm": "perl", "png": "png", "py": "python", "pyc": "pythonbytecode", "rst": "rst", "sh": "shell",
    "so": "elf", "svg": "svg", "toml": "toml", "ttf": "ttf", "wav": "wav", "xml": "xml", "yaml": "yaml", "zip": "zip",
}  # fmt: skip
"""Extensions whose files are what they say, and magika's names of them."""


def machine_files(cache: Path, *, per_type: int = 60) -> list[tuple[Path, str]]:
    """Files of this Python installation, of `/usr/share` and of the cache, with magika's name of their type.

    At most ``per_type`` of each extension, at least 64 bytes long; in a fixed random order. Another machine has other
    files, so that only numbers of one run compare.
    """
    paths = sysconfig.get_paths()
    roots = [Path(paths["stdlib"]), Path(paths["purelib"]), Path(paths["include"]), Path("/usr/share"), cache]
    found: dict[str, list[Path]] = {extension: [] for extension in EXTENSIONS}
    for root in roots:
        for path in sorted(root.rglob("*")):
            kind = found.get(path.suffix.lower().removeprefix("."))
            if kind is not None and len(kind) < 40 * per_type and path.is_file() and not path.is_symlink():
                kind.append(path)
    random = np.random.RandomState(0)
    chosen = []
    for extension, files in found.items():
        some = [files[i] for i in random.permutation(len(files))]
        some = [path for path in some if path.stat().st_size >= 64][:per_type]
        chosen += [(path, EXTENSIONS[extension]) for path in some]
    return [chosen[i] for i in random.permutation(len(chosen))]
