"""CA2-SIS's generator behind its nodes: files, maps of any order and size, edits, what is refused. Weights are tiny and random."""

from __future__ import annotations

import folder_paths
import pytest
import torch
from pack.nodes import ca2sis as nodes
from pack.nodes.ca2sis_attention import ExemplaryCA2SISAttentionPreview
from pack.py.ca2sis import checkpoint, codes
from pack.py.ca2sis.labels import ORDERS, remap_table
from pack.py.ca2sis.model import Config, Generator
from pack.py.host.ca2sis import codes as host
from pack.py.semantic.palettes import AUTOMATIC_NAME, named_palette
from pack.py.semantic.reading import read_labels
from pack.py.semantic.semantic_map import SemanticMap

CELEBA = named_palette("CelebAMask-HQ")
TINY = {
    "style_dim": 8, "width": 32, "encoder_width": 2, "grid": (4, 4), "mask_size": (16, 16), "head_dims": (8, 8, 8, 8, 8),
    "noise_width": 16,
}  # fmt: skip
HAIR, SKIN, HAT = 13, 1, 14


def weights(classes=19, noise=16, background=False, seed=0):
    config = Config(classes=classes, mask_channels=classes - (not background), noise_dim=noise, **TINY)
    model = Generator(config, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5, generator=generator)
        else:
            value.normal_(mean=float(name.endswith("weight")), std=0.1, generator=generator)
    return config, {key: value.detach().clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ca2sis")
    for name, (config, state), labels in (
        ("celeba", weights(), ()),
        ("no_noise", weights(noise=0), ()),
        ("named", weights(3), ("backdrop", "skin", "hair")),
        ("ade", weights(151, background=True), ()),
        ("numbers", weights(4), ()),
    ):
        checkpoint.save(path / f"{name}.safetensors", state, config, labels)
    torch.save(weights()[1], path / "latest_net_G.pth")
    (path / "broken.safetensors").write_bytes(b"<html>")
    before = dict(folder_paths.folder_names_and_paths)
    folder_paths.folder_names_and_paths["ca2sis"] = ([str(path)], {".safetensors", ".pth"})
    yield path
    folder_paths.folder_names_and_paths.clear()
    folder_paths.folder_names_and_paths.update(before)


@pytest.fixture(scope="module")
def celeba(folder):
    return host.load("celeba.safetensors")


def face(seed=0, b=1, size=96, left=HAIR, right=SKIN, palette=CELEBA):
    image = torch.rand(b, size, size, 3, generator=torch.Generator().manual_seed(seed))
    labels = torch.full((b, size, size), right, dtype=torch.uint8)
    labels[:, :, : size // 2] = left
    return image, SemanticMap(labels, palette)


def test_the_whole_way_from_two_faces_to_an_edited_one(folder):
    (loaded,) = nodes.ExemplaryLoadCA2SIS.execute("latest_net_G.pth", "auto").args
    assert loaded.labels == codes.CELEBAMASK_HQ and loaded.config.tanh
    (a, map_a), (b, map_b) = face(0), face(1, left=SKIN, right=HAIR, size=128)
    styles = [nodes.ExemplaryCA2SISEncodeStyle.execute(loaded, i, m, "by name").args[0] for i, m in ((a, map_a), (b, map_b))]
    shapes = [nodes.ExemplaryCA2SISEncodeShape.execute(loaded, m, "by name").args[0] for m in (map_a, map_b)]
    (mixed,) = nodes.ExemplaryCA2SISMixStyles.execute(*styles, "hair", "none", 1.0, "keep base").args
    assert torch.equal(mixed.codes[:, HAIR], styles[1].codes[:, HAIR]) and torch.equal(
        mixed.codes[:, SKIN], styles[0].codes[:, SKIN]
    )
    (edited,) = nodes.ExemplaryCA2SISEditShape.execute(shapes[0], "hair", "none", "swap if both", 1.0, shapes[1]).args
    assert torch.equal(edited.codes.codes[:, HAIR - 1], shapes[1].codes.codes[:, HAIR - 1])
    draw = nodes.ExemplaryCA2SISGenerate.execute
    plain, styled, shaped = (draw(loaded, *p).args[0] for p in ((shapes[0], styles[0]), (shapes[0], mixed), (edited, styles[0])))
    assert plain.shape == (1, 64, 64, 3) and plain.min() >= 0 and plain.max() <= 1
    assert not torch.equal(plain, styled) and not torch.equal(plain, shaped)
    image, shares, report = ExemplaryCA2SISAttentionPreview.execute(0.3, 0, ca2sis=loaded, shape=edited, style=mixed).args
    torch.testing.assert_close(shares[..., 0].sum(dim=0), torch.ones(shares.shape[1:3]))
    assert image.shape[1:] == shares.shape[1:] and len(report.splitlines()) == 19


def test_a_decode_is_what_the_plain_network_draws(folder, celeba):
    _, state = weights()
    plain = checkpoint.prepare(state).build()
    image, semantic_map = face(size=64)
    mask = codes.one_hot(semantic_map.labels, 19)
    with torch.no_grad():
        expected = (plain(image.movedim(-1, 1) * 2 - 1, mask) + 1) / 2
    found = host.generate(celeba, host.encode_shape(celeba, semantic_map), host.encode_style(celeba, image, semantic_map))
    torch.testing.assert_close(found.movedim(-1, 1), expected, rtol=1e-4, atol=1e-4)


def test_orders_of_face_parsers_mean_the_same_classes(celeba):
    bisenet = ORDERS["BiSeNet face parsing"]
    table = remap_table(bisenet, codes.CELEBAMASK_HQ)
    assert sorted(table) == list(range(19)) and table[17] == HAIR and table[10] == 2
    image, own = face()
    parsed = SemanticMap(torch.where(own.labels == HAIR, 17, 1), CELEBA)
    a, b = host.encode_style(celeba, image, own), host.encode_style(celeba, image, parsed, "BiSeNet face parsing")
    assert torch.equal(a.codes, b.codes)


def test_a_file_names_its_classes_and_a_map_is_read_by_them(folder):
    loaded = host.load("named.safetensors")
    playground = named_palette("playground")
    image, semantic_map = face(left=playground.find("hair"), right=playground.find("skin"), palette=playground)
    assert host.encode_style(loaded, image, semantic_map).present.tolist() == [[False, True, True]]
    numbers = host.load("numbers.safetensors")
    with pytest.raises(ValueError, match="4 classes without names, the map's palette 'CelebAMask-HQ' 19"):
        host.encode_shape(numbers, face()[1])


def test_ade20k_weights_take_void_for_dont_care(folder):
    loaded = host.load("ade.safetensors")
    _, semantic_map = face(left=0, right=255, palette=named_palette("ADE20K"))
    assert host.encode_shape(loaded, semantic_map).codes.present[0].nonzero().flatten().tolist() == [0, 150]
    with pytest.raises(ValueError, match=r"the map shows .*hair"):
        host.encode_shape(loaded, face()[1])


def test_what_is_sampled_depends_on_the_seed_and_on_the_classes_there(folder, celeba):
    shape = host.encode_shape(celeba, face()[1])
    a, b, again = (nodes.ExemplaryCA2SISSampleStyle.execute(celeba, shape, seed, 2).args[0] for seed in (0, 1, 0))
    assert torch.equal(a.codes, again.codes) and not torch.equal(a.codes, b.codes) and len(a) == 2
    assert a.codes[:, HAIR].abs().sum() > 0 and a.codes[:, HAT].abs().sum() == 0
    with pytest.raises(ValueError, match="no noise network"):
        host.sample_style(host.load("no_noise.safetensors"), shape, 0, 1)


def test_an_absent_donor_class_keeps_the_base_and_says_so(celeba, caplog):
    style = host.encode_style(celeba, *face())
    donor = host.encode_style(celeba, *face(1))
    assert torch.equal(host.mix_styles(style, donor, "hat", "none", 1.0, "keep").codes, style.codes)
    assert "the donor has no hat" in caplog.text
    assert not torch.equal(host.mix_styles(style, donor, "hair", "expression", 1.0, "use").codes, style.codes)
    shape, other = host.encode_shape(celeba, face()[1]), host.encode_shape(celeba, face(left=HAT)[1])
    assert torch.equal(host.edit_shape(shape, other, "hat", "none", "swap if both", 1.0).codes.codes, shape.codes.codes)
    assert "do not both have hat" in caplog.text
    assert not torch.equal(host.edit_shape(shape, other, "hat", "none", "replace", 1.0).codes.codes, shape.codes.codes)


def test_edits_of_a_shape_chain_and_mix(celeba):
    first, second = host.encode_shape(celeba, face()[1]), host.encode_shape(celeba, face(left=HAT)[1])
    both = host.edit_shape(host.edit_shape(first, second, "hat", "none", "add", 1.0), None, "skin", "none", "remove", 1.0)
    assert both.codes.present[0].nonzero().flatten().tolist() == [HAIR, HAT]
    half = host.edit_shape(first, second, "hat", "none", "add", 0.5)
    whole = host.edit_shape(first, second, "hat", "none", "add", 1.0)
    torch.testing.assert_close(half.codes.codes, (first.codes.codes + whole.codes.codes) / 2)


def test_what_cannot_work_is_said(folder, celeba):
    image, semantic_map = face()
    style, shape = host.encode_style(celeba, image, semantic_map), host.encode_shape(celeba, semantic_map)
    wide = SemanticMap(semantic_map.labels[:, :40], CELEBA)
    ade = SemanticMap(semantic_map.labels, named_palette("ADE20K"))
    void = SemanticMap(torch.full((1, 8, 8), 255), CELEBA)
    named = host.load("named.safetensors")
    cases = (
        (lambda: host.load("gone.safetensors"), "'gone.safetensors' is not in"),
        (lambda: host.load("broken.safetensors"), "cannot be read as weights"),
        (lambda: host.encode_shape(celeba, wide), "the map is 96x40, but these weights draw 64x64"),
        (lambda: host.encode_style(celeba, image[:, :40], semantic_map), "the image is 96x40"),
        (lambda: host.encode_style(celeba, image * torch.nan, semantic_map), "image contains NaN"),
        (lambda: host.encode_style(celeba, image.repeat(3, 1, 1, 1), face(b=2)[1]), "3 images and 2 maps"),
        (lambda: host.encode_shape(celeba, ade), "these weights .* do not support.*for ADE20K none were published"),
        (lambda: host.encode_shape(celeba, void), "void everywhere"),
        (lambda: host.mix_styles(style, style, "beard", "none", 1.0, "keep"), "no class is called 'beard'"),
        (lambda: host.mix_styles(style, style, " ", "none", 1.0, "keep"), "no class is chosen"),
        (lambda: host.edit_shape(shape, shape, "background", "none", "replace", 1.0), "class 0 .* has no shape"),
        (lambda: host.edit_shape(shape, None, "hair", "none", "replace", 1.0), "connect one"),
        (lambda: host.generate(named, shape, style), "weights of other classes"),
        (lambda: ExemplaryCA2SISAttentionPreview.execute(0.3, 0, ca2sis=celeba), "connect model, positive and latent"),
    )
    for call, says in cases:
        with pytest.raises(ValueError, match=says):
            call()


def test_inputs_are_not_changed(celeba):
    image, semantic_map = face()
    kept = image.clone(), semantic_map.labels.clone()
    style, shape = host.encode_style(celeba, image, semantic_map), host.encode_shape(celeba, semantic_map)
    before = style.codes.clone(), shape.codes.codes.clone(), shape.mask.clone()
    host.mix_styles(style, host.encode_style(celeba, *face(1)), "hair", "none", 1.0, "keep")
    host.edit_shape(shape, host.encode_shape(celeba, face(left=HAT)[1]), "hair,hat", "none", "replace", 1.0)
    host.generate(celeba, shape, style)
    for a, b in zip((*kept, *before), (image, semantic_map.labels, style.codes, shape.codes.codes, shape.mask)):
        assert torch.equal(a, b)


def test_saved_styles_come_back_and_nothing_is_overwritten(celeba, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    style = host.encode_style(celeba, *face())
    first, second = (nodes.ExemplaryCA2SISSaveStyle.execute(style, "red").args[0] for _ in range(2))
    assert first != second
    (back,) = nodes.ExemplaryCA2SISLoadStyle.execute(second).args
    assert torch.equal(back.codes, style.codes) and torch.equal(back.present, style.present) and back.labels == style.labels
    for name, says in (("", "name is empty"), ("../../out", "cannot be saved in output/ca2sis_styles")):
        with pytest.raises(ValueError, match=says):
            nodes.ExemplaryCA2SISSaveStyle.execute(style, name)
    with pytest.raises(ValueError, match="no saved style"):
        nodes.ExemplaryCA2SISLoadStyle.execute("../secret.safetensors")


def test_numbers_that_are_ranks_by_area_are_not_a_parsers(celeba):
    drawn = torch.zeros(1, 96, 96, 3)
    drawn[:, :, :30] = torch.tensor([0.0, 0.5, 1.0])
    ranks = read_labels(drawn, AUTOMATIC_NAME).semantic_map
    for encode in (
        lambda: nodes.ExemplaryCA2SISEncodeShape.execute(celeba, ranks, "BiSeNet face parsing"),
        lambda: nodes.ExemplaryCA2SISEncodeStyle.execute(celeba, drawn, ranks, "CelebAMask-HQ"),
    ):
        with pytest.raises(ValueError, match=r"label_order is .*ranks by area.*'class numbers'"):
            encode()
    numbers = torch.full((1, 96, 96, 1), 17 / 255)  # hair of BiSeNet
    numbers[:, :, :48] = 1 / 255
    parsed = read_labels(numbers, "CelebAMask-HQ", reading="class numbers").semantic_map
    (shape,) = nodes.ExemplaryCA2SISEncodeShape.execute(celeba, parsed, "BiSeNet face parsing").args
    assert shape.codes.present[0].nonzero().flatten().tolist() == [SKIN, HAIR]


def test_values_that_the_menus_do_not_offer_are_named(folder, celeba):
    image, semantic_map = face()
    style, shape = host.encode_style(celeba, image, semantic_map), host.encode_shape(celeba, semantic_map)
    for call, message in (
        (lambda: nodes.ExemplaryCA2SISMixStyles.execute(style, style, "hair", "none", 1.0, "nope"), "if_absent is 'nope'"),
        (lambda: nodes.ExemplaryCA2SISMixStyles.execute(style, style, "hair", "nope", 1.0, "keep base"), "group is 'nope'"),
        (lambda: nodes.ExemplaryCA2SISMixStyles.execute(style, style, 3, "none", 1.0, "keep base"), "classes is 3"),
        (lambda: nodes.ExemplaryCA2SISEditShape.execute(shape, "hair", "none", "nope", 1.0, shape), "'nope'"),
        (lambda: nodes.ExemplaryCA2SISSampleStyle.execute(celeba, shape, 2**64, 1), "seed is 18446744073709551616"),
        (lambda: nodes.ExemplaryCA2SISSampleStyle.execute(celeba, shape, 0, 0), "count is 0"),
        (lambda: nodes.ExemplaryLoadCA2SIS.execute("celeba.safetensors", "nope"), "final_activation is 'nope'"),
        (lambda: nodes.ExemplaryLoadCA2SIS.execute(7, "auto"), "Load CA2-SIS: 7 is not in"),
        (lambda: host.encode_style(celeba, image[..., :2], semantic_map), r"image is a tensor of shape \[1, 96, 96, 2\]"),
        (lambda: host.encode_style(celeba, image[:0], semantic_map), "image is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert len(nodes.ExemplaryCA2SISSampleStyle.execute(celeba, shape, 2**64 - 1, 2).args[0]) == 2


def test_styles_of_windows_workflows_and_names_that_leave_the_folder(celeba, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    style = host.encode_style(celeba, *face())
    (file,) = nodes.ExemplaryCA2SISSaveStyle.execute(style, "faces/red").args
    assert file == "ca2sis_styles/faces/red_00001_.safetensors"
    (back,) = nodes.ExemplaryCA2SISLoadStyle.execute(file.replace("/", "\\")).args
    assert torch.equal(back.codes, style.codes)
    for name in ("..", ".", "../a", "a\0b", "n" * 400):
        with pytest.raises(ValueError, match="cannot be saved in output/ca2sis_styles"):
            nodes.ExemplaryCA2SISSaveStyle.execute(style, name)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["red_00001_.safetensors"]


def test_a_preview_refuses_seeds_beyond_64_bits(celeba):
    image, semantic_map = face()
    style, shape = host.encode_style(celeba, image, semantic_map), host.encode_shape(celeba, semantic_map)
    values = {"percent": 0.5, "ca2sis": celeba, "shape": shape, "style": style}
    with pytest.raises(ValueError, match="Class Attention Preview: seed is 18446744073709551616"):
        ExemplaryCA2SISAttentionPreview.execute(seed=2**64, **values)
    assert len(ExemplaryCA2SISAttentionPreview.execute(seed=2**64 - 1, **values).args) == 3
