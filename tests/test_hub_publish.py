"""Publishing with the real client, and what plain timm makes of the result."""

from __future__ import annotations

import hashlib
import json
import shutil
from fnmatch import filter as matching
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from hub_client import NAME, REPO, ROOT
from hub_server import HubServer, run_client

import tcl_zoo
from tcl_zoo import index
from tcl_zoo.datasets import pretrained_cfg
from tcl_zoo.recipes import recipe
from tcl_zoo.release import record, update_index, write_card
from tcl_zoo.verify import golden_output

ARGS = (NAME, "--repo-id", REPO, "--out", "cards")
FAKE = "tcl_resnet18_imagenet100.e1"


def local(folder: Path, name: str = NAME) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "cards" / name).iterdir()}


def on_hub(hub: HubServer, repo: str = REPO, revision: str | None = None) -> dict[str, bytes]:
    found = hub.repos[repo]
    files = dict(found.commits[revision or found.branches["main"]].files)
    files.pop(".gitattributes")
    return files


def entry(folder: Path, name: str = NAME) -> dict[str, object]:
    return json.loads((folder / "index.json").read_text())[name]


def writes(hub: HubServer) -> list[str]:
    return [line for line in hub.requests if line.split()[0] in ("POST", "PUT", "DELETE")]


def test_publish_and_publish_again(hub, client, zoo):
    code, out = client.script(zoo, *ARGS)
    assert code == 0, out
    repo = hub.repos[REPO]
    first, released = repo.commits.values()
    assert list(first.files) == [".gitattributes"], "the repository was made, then one commit"
    assert repo.tags == {f"v{tcl_zoo.__version__}": released.id} and not repo.private
    assert on_hub(hub) == local(zoo)
    assert (entry(zoo)["repo_id"], entry(zoo)["revision"]) == (REPO, released.id)
    assert f"hf-hub:{REPO}" in on_hub(hub)["README.md"].decode() and released.id in out
    hub.requests.clear()
    code, out = client.script(zoo, *ARGS)
    assert code == 0 and "nothing to send" in out
    assert len(repo.commits) == 2 and not matching(hub.requests, "*/commit/*")
    from_there = client(f"out = load({NAME!r})", zoo)
    assert from_there == [hashlib.sha256(local(zoo)["model.safetensors"]).hexdigest(), []]


def test_what_is_under_a_tag_does_not_change(hub, client, zoo):
    assert client.script(zoo, *ARGS)[0] == 0
    before = on_hub(hub)
    path = zoo / "cards" / NAME / "config.json"
    config = json.loads(path.read_text())
    config["tcl_zoo"]["seconds"] += 1
    path.write_text(json.dumps(config))
    update_index(zoo / "cards", cards=True)
    code, out = client.script(zoo, *ARGS)
    assert code == 2 and "what is under a tag does not change" in out and "config.json" in out
    assert len(out.strip().splitlines()) == 1
    assert on_hub(hub) == before and len(hub.repos[REPO].tags) == 1
    assert entry(zoo)["revision"] is None, "the index does not claim that this is published"


def test_a_new_version_replaces_what_the_old_one_left(hub, client, zoo):
    """Under another tag: changed files are sent, a picture that is gone is deleted, what is not ours is kept."""
    old = local(zoo) | {"old_picture.png": b"old", "config.json": b"{}", "NOTES.txt": b"kept"}
    hub.commit(REPO, {**old, ".gitattributes": b""})
    assert client.script(zoo, *ARGS)[0] == 0
    assert on_hub(hub) == local(zoo) | {"NOTES.txt": b"kept"}
    assert len(hub.repos[REPO].commits) == 2


def test_stopped_between_commit_and_tag(hub, client, zoo):
    hub.fail("status", "POST */tag/*", status=500)
    assert client.script(zoo, *ARGS)[0] == 2
    assert entry(zoo)["revision"] is None and not hub.repos[REPO].tags
    assert client.script(zoo, *ARGS)[0] == 0
    assert len(hub.repos[REPO].commits) == 2 and hub.repos[REPO].tags
    assert entry(zoo)["revision"] == hub.repos[REPO].branches["main"]


def test_dry_run_sends_nothing(hub, client, zoo):
    before = local(zoo)
    code, out = client.script(zoo, *ARGS, "--dry-run")
    assert code == 0 and hub.requests == [] and local(zoo) == before
    for name, data in before.items():
        assert name in out and (name == "README.md" or f"{len(data):,} bytes" in out)
    assert f"hf-hub:{REPO}" in out and "model-index:" in out and "## Limits and intended use" in out
    assert entry(zoo)["repo_id"] is None


def test_all_private(hub, client, zoo):
    code, out = client.script(zoo, "--all", "--org", "team", "--private", "--out", "cards")
    assert code == 0, out
    assert list(hub.repos) == [f"team/{NAME}"] and hub.repos[f"team/{NAME}"].private
    assert entry(zoo)["repo_id"] == f"team/{NAME}"
    assert client(f"out = load({NAME!r})", zoo)[1] == []
    assert "no token was sent" in client(f"out = load({NAME!r}, cache_dir='other')", zoo, HF_TOKEN="")[0]


def edit_card(old: str, new: str):
    def edit(folder: Path) -> None:
        text = (folder / "README.md").read_text()
        assert old in text
        (folder / "README.md").write_text(text.replace(old, new, 1))

    return edit


def edit_config(change, reindex: bool):
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        if reindex:
            update_index(folder.parent, cards=True)

    return edit


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)


REFUSED = {
    "no licence": (edit_card("license: apache-2.0\n", ""), "license in the card"),
    "library": (edit_card("library_name: timm", "library_name: keras"), "library_name in the card"),
    "no recipe": (edit_card(f"base_recipe: {NAME}\n", ""), "base_recipe in the card"),
    "no data set": (edit_card("datasets:\n- digits\n", ""), "datasets in the card"),
    "pipeline": (edit_card("pipeline_tag: image-classification", "pipeline_tag: x"), "pipeline_tag in the card"),
    "embellished": (edit_card("      value: ", "      value: 1"), "model-index in the card"),
    "no metadata": (edit_card("---\n", ""), "in the card"),
    "weights": (flip, "sha256 of the weights is"),
    "index": (edit_config(lambda c: c["tcl_zoo"].update(seconds=0), False), "config.json in index.json"),
    "top-1": (edit_config(lambda c: c["tcl_zoo"]["results"].update(top1=99.9), True), "measured top-1"),
    "golden": (edit_config(lambda c: c["tcl_zoo"]["golden"].update(logits=[[0.0] * 10] * 4), True), "golden output"),
    "data": (edit_config(lambda c: c["tcl_zoo"]["fingerprints"].update(test="0"), True), "test images are not those"),
    "pickle": (lambda folder: (folder / "model.pkl").write_bytes(b"x"), "no part of a release: model.pkl"),
    "hidden": (lambda folder: (folder / ".env").write_text("HF_TOKEN=x"), "no part of a release: .env"),
    "link": (lambda folder: (folder / "a.png").symlink_to("/etc/passwd"), "no part of a release: a.png"),
    "missing": (lambda folder: (folder / "README.md").unlink(), "lacks README.md"),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED)
def test_nothing_is_sent_of_a_release_that_does_not_hold(hub, client, zoo, damage, message):
    damage(zoo / "cards" / NAME)
    code, out = client.script(zoo, *ARGS)
    last = out.strip().splitlines()[-1]
    assert code == 1 and message in last and last.startswith("error: ")
    assert hub.requests == []


def test_refusals_of_the_hub_are_one_line(hub, client, zoo):
    hub.commit(REPO, {"README.md": b"somebody's"})
    before = local(zoo)
    cases = {"hf_wrong": "does not accept the token", hub.read_token: "lacks the permission", "": "there is none"}
    for token, message in cases.items():
        code, out = client.script(zoo, *ARGS, HF_TOKEN=token)
        assert (
            code == 2 and message in out.splitlines()[-1] and out.splitlines()[-1].startswith("error: cannot publish")
        )
    hub.fail("status", "POST */commit/*", status=412)
    code, out = client.script(zoo, *ARGS)
    assert code == 2 and "somebody else committed" in out
    hub.inline = False
    hub.fail("status", "PUT /upload/*", times=None, status=400)
    upload = f"""
    from tcl_zoo.publish import publish
    constants.HF_HUB_DISABLE_XET = True
    try:
        publish(Path("cards/{NAME}"), {REPO!r})
    except WeightsError as error:
        out = str(error)
    """
    assert client(upload, zoo).endswith("answered 400")
    assert [commit.files for commit in hub.repos[REPO].commits.values()] == [{"README.md": b"somebody's"}]
    assert not hub.repos[REPO].tags and entry(zoo)["repo_id"] is None
    assert local(zoo) == before, "the card says where it is only once it is there"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give a NAME"),
        ((NAME,), "where to?"),
        ((NAME, "--all", "--org", "x"), "one of NAME"),
        (("--all", "--repo-id", "a/b"), "--repo-id is for one release"),
        ((NAME, "--repo-id", "noslash"), "takes ORG/NAME"),
        (("nothing", "--org", "x"), "is no release folder"),
        (("--cards", "--no-index"), "go by the index"),
    ],
)
def test_wrong_use(hub, client, zoo, args, message):
    code, out = client.script(zoo, *args)
    assert code == 2 and message in out and len(out.strip().splitlines()) == 1
    assert hub.requests == []


@pytest.mark.parametrize("damage", [b"---\n: [\n---\n", b"\xff\xfe"])
def test_a_card_that_cannot_be_read(client, zoo, damage):
    (zoo / "cards" / NAME / "README.md").write_bytes(damage)
    code, out = client.script(zoo, NAME, "--org", "x", "--out", "cards")
    assert code == 1 and "the card's metadata cannot be read" in out and len(out.strip().splitlines()) == 1


def test_cards_are_written_again_from_config(client, zoo):
    card = zoo / "cards" / NAME / "README.md"
    right = card.read_text()
    card.write_text("gone")
    (zoo / "index.json").unlink()
    code, out = client.script(zoo, "--cards", "--out", "cards")
    assert code == 0 and "the index has 1 names" in out
    assert card.read_text() == right and NAME in (zoo / "cards" / "README.md").read_text()
    assert entry(zoo)["sha256"] == hashlib.sha256(local(zoo)["model.safetensors"]).hexdigest()


def fake_imagenet100(cards: Path) -> None:
    """A release of timm's own resnet18 with random weights, as release() would write it for ImageNet-100."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=100).half()
    data = safetensors.torch.save(model.state_dict(), {"format": "pt"})
    cfg = pretrained_cfg("imagenet100")
    folder = cards / FAKE
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(data)
    results = {"top1": 1.0, "n": 5000, "protocol": "linear probe, cached", "knn": {}, "seed": 0, "epochs": 1}
    facts = {
        "name": FAKE, "recipe": recipe(FAKE).to_dict(), "results": results | {"last_epoch": 1},
        "fingerprints": {"train": "0", "test": "0"}, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": 1.0,
        "golden": {"logits": golden_output(model.float(), cfg).tolist()},
        "environment": {"software": {"torch": "2"}, "hardware": "none", "processes": 1, "precision": "fp32"},
    }  # fmt: skip
    config = {"architecture": "resnet18", "num_classes": 100, "num_features": 512, "global_pool": "avg"}
    config |= {"model_args": {"in_chans": 3}, "pretrained_cfg": cfg, "tcl_zoo": facts}
    (folder / "config.json").write_text(json.dumps(config))
    write_card(folder)


LOGITS = """
import torch
def logits(model, *shape):
    x = torch.arange(shape[0] * shape[1] * shape[2] * 2).remainder(255).div(127).sub(1).view(2, *shape)
    with torch.no_grad():
        return model.eval()(x).tolist()
"""
SEND = """
from tcl_zoo.publish import publish
constants.HF_HUB_DISABLE_XET = True  # what the variable of that name sets at the client's start
out = [publish(Path("cards") / name, "org/" + name).sent for name in (NAME, FAKE)]
"""
OURS = """
import importlib, timm, tcl_zoo.encoders
importlib.reload(tcl_zoo.encoders)  # its tags are those of the index at its import
tag = "resnet20_cifar.tcl_digits.e1"
tagged = timm.create_model(tag, pretrained=True)
assert "state_dict" not in tagged.pretrained_cfg
assert "state_dict" not in timm.create_model(tag, pretrained=True, features_only=True).pretrained_cfg
assert tagged.pretrained_cfg["hf_hub_id"].startswith(REPO + "@")
out = {
    "ours": logits(tcl_zoo.create_model(NAME, pretrained=True), 1, 8, 8),
    "hub": logits(timm.create_model("hf-hub:" + REPO, pretrained=True), 1, 8, 8),
    "folder": logits(timm.create_model("local-dir:cards/" + NAME, pretrained=True), 1, 8, 8),
    "tag": logits(tagged, 1, 8, 8),
    "stock": logits(tcl_zoo.create_model(FAKE, pretrained=True), 3, 224, 224),
}
cached = next(Path("cache/models--" + REPO.replace("/", "--")).glob("snapshots/*/model.safetensors")).resolve()
data = bytearray(cached.read_bytes())
data[-3] ^= 1
cached.write_bytes(data)
os.environ["HF_TOKEN"] = "hf_wrong"  # it cannot be fetched again
try:
    timm.create_model(tag, pretrained=True)
except WeightsError as error:
    out["damaged"] = str(error)
"""
THEIRS = """
import json, sys, timm
out = {
    "hub": logits(timm.create_model("hf-hub:org/" + FAKE, pretrained=True), 3, 224, 224),
    "folder": logits(timm.create_model("local-dir:cards/" + FAKE, pretrained=True), 3, 224, 224),
    "alone": "tcl_zoo" not in sys.modules,
}
print(json.dumps(out))
"""


def test_plain_timm_reads_what_was_published(hub, client, zoo):
    """Published over LFS with xet off, read in the client's default settings: logits equal to the bit."""
    fake_imagenet100(zoo / "cards")
    update_index(zoo / "cards", cards=True)
    hub.inline = False
    put = hub.fail("status", "PUT /upload/*")
    names = f"NAME, FAKE, REPO = {NAME!r}, {FAKE!r}, {REPO!r}\n"
    sent = client(names + SEND, zoo)
    assert all("model.safetensors" in files for files in sent) and put.hits == 1
    assert len(matching(hub.requests, "PUT /upload/* 200")) >= 5, "22 MB go in parts of 5 MiB"
    assert on_hub(hub, "org/" + FAKE) == local(zoo, FAKE)
    ours = client(names + LOGITS + OURS, zoo)
    assert ours["hub"] == ours["folder"] == ours["tag"] == ours["ours"]
    assert len({tuple(row) for row in ours["ours"]}) == 2, "the logits say something"
    assert "does not accept the token" in ours["damaged"], "timm's own name is checked, too"
    alone = run_client(hub, names + LOGITS + THEIRS, zoo, HF_HUB_DISABLE_XET=None, OMP_NUM_THREADS="1")
    theirs = json.loads(alone.stdout.splitlines()[-1])
    assert theirs["alone"] and theirs["hub"] == theirs["folder"] == ours["stock"]


def test_the_index_and_the_cards_of_the_checkout_agree():
    """What ships: every entry has its folder, and the digests are those of the files."""
    released = json.loads((ROOT / "tcl_zoo" / "index.json").read_text())
    folders = {path.parent.name for path in (ROOT / "model_cards").glob("*/config.json")}
    assert folders == set(released)
    for name, known in released.items():
        folder = index.bundled_folder(name)
        assert folder is not None
        for file, key in (("model.safetensors", "sha256"), ("config.json", "config_sha256")):
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == known[key]


def test_run_dir_builds_and_publishes(hub, client, zoo, released):
    shutil.rmtree(zoo / "cards")
    run = str(released.parent / "run")
    code, out = client.script(zoo, "--run-dir", run, "--out", "cards", "--repo-id", REPO)
    assert code == 0, out
    assert on_hub(hub) == local(zoo) and entry(zoo)["repo_id"] == REPO


def test_run_dir_of_a_fine_tuning_publishes_its_release(hub, client, zoo, tmp_path):
    from PIL import Image

    from tcl_zoo.finetune import finetune

    for i in range(6):
        (folder := tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * i).save(folder / f"{i}.png")
    tuned = finetune(NAME, tmp_path / "images", tmp_path / "photos", weights_dir=zoo / "cards", cpu=True, epochs=1)
    before = (zoo / "index.json").read_bytes()
    code, out = client.script(zoo, "--run-dir", str(tuned.run_dir))
    assert code == 2 and "--repo-id ORG/NAME alone publishes it" in out
    code, out = client.script(zoo, "--run-dir", str(tuned.run_dir), "--org", "me")
    assert code == 0 and "photos: hf-hub:me/photos@" in out, out
    sent = on_hub(hub, "me/photos")
    assert sent["model.safetensors"] == (tuned.release / "model.safetensors").read_bytes()
    assert b"hf-hub:me/photos" in sent["README.md"] and (zoo / "index.json").read_bytes() == before


def test_a_second_version_under_a_tag_of_ones_own(hub, client, zoo):
    """What is released again goes under another tag; the first one stays what it was."""
    assert client.script(zoo, *ARGS)[0] == 0
    (zoo / "cards" / NAME / "confusion.png").unlink()
    assert client.script(zoo, "--cards", "--out", "cards")[0] == 0
    code, out = client.script(zoo, *ARGS)
    assert code == 2 and "choose another one (--tag)" in out
    code, out = client.script(zoo, f"{NAME}/", *ARGS[1:], "--tag", "v2-better")
    assert code == 0, out
    tags = hub.repos[REPO].tags
    assert set(tags) == {f"v{tcl_zoo.__version__}", "v2-better"} and len(set(tags.values())) == 2
    assert entry(zoo)["revision"] == tags["v2-better"]


def test_what_another_process_entered_meanwhile_stays(zoo, monkeypatch):
    monkeypatch.setattr(index, "INDEX_FILE", zoo / "index.json")
    index.entries.cache_clear()
    try:
        assert list(index.entries()) == [NAME]
        other = {"ce_resnet20_digits": index.entries()[NAME]}
        (zoo / "index.json").write_text(json.dumps(index.entries() | other))
        record(NAME, REPO, "0" * 40)
        assert set(json.loads((zoo / "index.json").read_text())) == {NAME, "ce_resnet20_digits"}
    finally:
        monkeypatch.undo()
        index.entries.cache_clear()
