"""``graphprune vocabulary``: a language model and its tokenizer with fewer tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import graphprune as gp
from graphprune.commands.bundles import AsJson, Model, Opening, Written
from graphprune.commands.shell import out, print_json, progress, require_distinct
from graphprune.errors import OptionError
from graphprune.files import is_there, require_writable, require_writable_folder
from graphprune.report.envelope import described
from graphprune.report.terminal import render_report


def vocabulary(
    model: Model,
    output: Written,
    *,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|N", help="What stays: the tokens of a text file, or the first N tokens of the vocabulary."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Fill up to so many tokens with the first ones of the vocabulary.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="tokenizer.json, or a tokenizer's folder. Default: that of a checkpoint."),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the former id of each token: JSON, or an array (.npy)."),
    ] = None,
    opening: Opening,
    showing: AsJson,
) -> None:
    """Remove tokens from a language MODEL and its tokenizer, and prove that nothing else has changed."""
    checkpoint = not model.endswith(".onnx")
    text = None if tokens is None or tokens.isdecimal() else tokens
    folder = output if checkpoint else output.parent
    source = tokenizer if tokenizer is not None else Path(model) if checkpoint else None
    if source is None:
        raise OptionError("an ONNX file has no tokenizer of its own; give one (--tokenizer PATH)")
    if (
        not checkpoint
        and is_there(source)
        and (source if source.is_dir() else source.parent).resolve() == folder.resolve()
    ):
        raise OptionError(
            f"'{folder}' holds the tokenizer that is read, and another is written beside the model; give a folder of "
            "its own (-o FOLDER/model.onnx)"
        )
    require_distinct((model, text, tokenizer), ids, model=output)
    if checkpoint:
        require_writable_folder(output)
    for path in (each for each in (None if checkpoint else output, ids) if each is not None):
        require_writable(path)
    with progress(showing.as_json, after=("write",)) as tell:
        tell.begin("vocabulary")
        what = int(tokens) if tokens is not None and text is None else text
        pruned = gp.prune_vocabulary(model, source, what, count=count, **opening.keywords())
        tell.begin("write")
        if checkpoint:
            pruned.save_pretrained(output)
        else:
            pruned.save_onnx(output)
            pruned.save_tokenizer(folder)
        if ids is not None:
            pruned.write_map(ids)
    report = pruned.result.report
    if showing.as_json:
        files = described(model=model, output=output / "config.json" if checkpoint else output, ids=ids)
        n_tokens = {"before": pruned.before, "after": len(pruned.kept)}
        print_json({"output": str(output), "tokens": n_tokens, **report.to_dict()}, files)
        return
    out.print(render_report(report, title=str(output)))
    out.print(f"[bold]tokens:[/] {pruned.before:,} → {len(pruned.kept):,}", highlight=False)
