"""VAEs: shapes, round trips, statistics, what bad input says."""

from __future__ import annotations

import json

import pytest
import torch
from time_vae import StackingVAE

from vdinterp.vae import VAE, DiffusersVAE, FrameMap, IdentityVAE, LatentStats, TinyConvCodec, build
from vdinterp.vae.protocol import check_frames


@pytest.fixture(scope="module")
def diffusers_vae() -> DiffusersVAE:
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return DiffusersVAE(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            latent_channels=4,
            layers_per_block=1,
            sample_size=16,
        )
    )


def test_identity_is_the_identity():
    video = torch.rand(2, 3, 1, 8, 8)
    vae = IdentityVAE()
    assert vae.encode(video) is video and vae.decode(video) is video
    assert isinstance(vae, VAE)


def test_codec_shapes_and_range():
    codec = TinyConvCodec(widths=(8, 8, 8)).eval()
    video = torch.rand(2, 3, 3, 56, 72)
    latents = codec.encode(video)
    assert latents.shape == (2, 3, 8, 7, 9)
    decoded = codec.decode(3 * latents)
    assert decoded.shape == video.shape
    assert decoded.min() >= 0 and decoded.max() <= 1
    assert isinstance(codec, VAE)


def test_codec_latents_are_normalised_and_noisy_in_training_only():
    torch.manual_seed(0)
    codec = TinyConvCodec(widths=(8, 8, 8)).train()
    video = torch.rand(4, 2, 3, 16, 16)
    normalised = []
    codec.norm.register_forward_hook(lambda module, given, latents: normalised.append(latents))
    assert not torch.equal(codec(video), codec(video))
    latents = normalised[0]
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-5)
    assert ((latents.var((0, 2, 3)) - 1).abs() < 0.3).all()  # a little low: untrained, the norm's epsilon counts
    torch.nn.init.constant_(codec.decoder[-1].bias, -3.0)
    assert codec(video).max() < 0 and codec.decode(torch.zeros(1, 1, 8, 2, 2)).max() == 0, "no clamp in training only"
    codec.eval()
    assert torch.equal(codec(video), codec(video))


def test_codecs_encode_alike_in_every_mode_and_beside_every_clip(diffusers_vae):
    torch.manual_seed(0)
    codec, video = TinyConvCodec(widths=(8, 8, 8)), torch.rand(3, 2, 3, 16, 16)
    codec(video)  # moves the running statistics, as training does
    for vae, module in ((codec, codec), (diffusers_vae, diffusers_vae.vae)):
        before = {key: value.clone() for key, value in module.state_dict().items()}
        expected = vae.encode(video), vae.decode(vae.encode(video))
        parts = list(module.modules())
        parts[-1].train(not parts[-1].training)
        modes = [part.training for part in parts]
        assert torch.equal(vae.encode(video), expected[0]) and torch.equal(vae.decode(expected[0]), expected[1])
        torch.testing.assert_close(vae.encode(video[:1]), expected[0][:1], atol=1e-5, rtol=1e-5)
        assert [part.training for part in parts] == modes, "the mode it was left in stays"
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[key]), f"encoding moved {key}"
        module.eval()


def test_one_latent_depends_on_its_own_cell_only():
    torch.manual_seed(0)
    codec = TinyConvCodec(widths=(8, 8, 8)).eval()
    video = torch.rand(1, 1, 3, 24, 24)
    changed = video.clone()
    changed[..., 8:16, 8:16] = 0
    different = (codec.encode(video) != codec.encode(changed)).any(2)[0, 0]
    assert different.tolist() == [[False] * 3, [False, True, False], [False] * 3]


def test_diffusers_image_autoencoder_frame_by_frame(diffusers_vae):
    video = torch.rand(2, 3, 3, 16, 16)
    latents = diffusers_vae.encode(video)
    assert latents.shape == (2, 3, 4, 8, 8)
    alone = diffusers_vae.encode(video[1:, 2:])
    assert torch.allclose(alone[0, 0], latents[1, 2], atol=1e-5)
    reference = diffusers_vae.vae.encode(video[1] * 2 - 1).latent_dist.mode()
    assert torch.allclose(latents[1], reference, atol=1e-5)
    decoded = diffusers_vae.decode(latents)
    assert decoded.shape == video.shape
    assert decoded.min() >= 0 and decoded.max() <= 1


def test_diffusers_video_autoencoder():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = DiffusersVAE(
        diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 2,
            up_block_types=("CogVideoXUpBlock3D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            temporal_compression_ratio=2,
        )
    )
    assert vae.is_video and vae.time_compression == 2 and vae.causal
    video = torch.rand(1, 5, 3, 16, 16)
    latents = vae.encode(video)
    assert latents.shape == (1, vae.latent_frames(5), 4, 8, 8) == (1, 3, 4, 8, 8)
    assert vae.decode(latents).shape == video.shape
    with pytest.raises(ValueError, match=r"4 video frames: .*the nearest that fit: 3 and 5"):
        vae.encode(video[:, :4])


def test_autoencoders_of_diffusers_say_how_many_frames_they_make_one_of() -> None:
    diffusers = pytest.importorskip("diffusers")
    small = {"base_dim": 4, "z_dim": 2, "dim_mult": [1, 1, 1], "num_res_blocks": 1}
    wan = DiffusersVAE(diffusers.AutoencoderKLWan(**small, temperal_downsample=[False, True]))
    video = torch.rand(1, 5, 3, 8, 8)
    assert (wan.time_compression, wan.causal) == (2, True)
    assert wan.encode(video).shape[1] == wan.latent_frames(5) == 3
    assert wan.decode(wan.encode(video)).shape == video.shape


def test_a_vae_is_rebuilt_from_its_config(diffusers_vae):
    for vae in (IdentityVAE(3), TinyConvCodec(widths=(8, 8, 8)).eval(), diffusers_vae):
        again = build(json.loads(json.dumps(vae.config)))
        assert type(again) is type(vae) and again.config == vae.config
        video = torch.rand(1, 1, 3, 16, 16)
        if hasattr(vae, "state_dict"):
            again.load_state_dict(vae.state_dict())
        if isinstance(again, torch.nn.Module):
            again.eval()
        assert torch.equal(again.encode(video), vae.encode(video))


def test_stats_normalise_and_undo():
    latents = torch.randn(4, 3, 2, 8, 8) * torch.tensor([2.0, 0.5]).view(2, 1, 1) + 3
    stats = LatentStats.of(latents)
    normal = stats.normalize(latents)
    assert torch.allclose(normal.mean((0, 1, 3, 4)), torch.zeros(2), atol=1e-4)
    assert torch.allclose(normal.std((0, 1, 3, 4)), torch.ones(2), atol=1e-4)
    assert torch.allclose(stats.unnormalize(normal), latents, atol=1e-5)
    assert LatentStats.from_dict(json.loads(json.dumps(stats.to_dict()))) == stats
    assert torch.equal(LatentStats((0.5,), (0.5,)).normalize(torch.ones(1, 1, 3, 2, 2)), torch.ones(1, 1, 3, 2, 2))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: check_frames("video", torch.rand(2, 3, 8, 8), 3), "batch frame channel height width"),
        (lambda: IdentityVAE().encode(torch.rand(2, 3, 3, 8, 8)), "expected 1 channels"),
        (lambda: check_frames("video", torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8), 3), "divide uint8"),
        (lambda: TinyConvCodec().encode(torch.rand(1, 2, 3, 60, 72)), "multiples of 8"),
        (lambda: TinyConvCodec().encode(torch.rand(1, 3, 2, 56, 72)), "right place"),
        (lambda: TinyConvCodec().decode(torch.rand(1, 2, 4, 7, 9)), "expected 8 channels"),
        (lambda: TinyConvCodec(noise=-1.0), "standard deviation"),
        (lambda: IdentityVAE(0), "at least 1"),
        (lambda: LatentStats((0.0,), (0.0,)), "positive"),
        (lambda: LatentStats((0.0, 1.0), (1.0,)), "2 and 1"),
        (lambda: LatentStats((0.0, 1.0), (1.0, 1.0)).normalize(torch.rand(1, 1, 3, 2, 2)), "2 channels"),
        (lambda: build({"kind": "identify"}), "tiny_conv"),
        (lambda: build({"kind": "identity", "colours": 3}), "colours"),
        (lambda: build({"kind": "diffusers", "class": "AutoencoderKL"}), "'config'"),
        (lambda: DiffusersVAE.from_config("AutoencoderXY", {}), "AutoencoderKL"),
        (lambda: DiffusersVAE(torch.nn.Linear(2, 2)), "encode"),
    ],
)
def test_bad_input_says_what_would_work(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rate", [1, 2, 4])
def test_a_latent_frame_depends_on_the_video_frames_that_its_map_names(rate: int, causal: bool) -> None:
    vae = StackingVAE(rate, causal)
    n_video = vae.n_video(4)
    assert n_video == (1 + 3 * rate if causal else 4 * rate) and vae.latent_frames(n_video) == 4
    assert [frame for latent in range(4) for frame in vae.video_frames(latent)] == list(range(n_video))
    video = torch.rand(2, n_video, 1, 3, 4)
    latents = vae.encode(video)
    assert latents.shape[:2] == (2, 4) and torch.equal(vae.decode(latents), video)
    for frame in range(n_video):
        changed = video.clone()
        changed[:, frame] = 0
        moved = (vae.encode(changed) != latents).flatten(2).any(-1).any(0).nonzero()[:, 0].tolist()
        assert moved == [int(vae.latent_of(torch.tensor(frame)))] and frame in vae.video_frames(moved[0])


def test_labels_of_video_frames_as_labels_of_latent_frames() -> None:
    wan, labels = FrameMap(4), torch.arange(9)[None].repeat(2, 1)
    assert wan.by_frame(labels).tolist() == [[0, 4, 8]] * 2
    assert wan.by_frame(labels, "mean").tolist() == [[0, 2.5, 6.5]] * 2
    assert wan.by_frame(labels, "sum").tolist() == [[0, 10, 26]] * 2
    assert wan.by_frame(labels == 5, "any").tolist() == [[False, False, True]] * 2
    assert wan.latent_of(torch.tensor([-1, 0, 1, 4, 5, 8])).tolist() == [-1, 0, 1, 1, 2, 2]
    assert FrameMap(4, causal=False).by_frame(labels[:, :8]).tolist() == [[3, 7]] * 2
    assert FrameMap().by_frame(labels) is labels
    for call, says in [
        (lambda: wan.latent_frames(8), r"8 video frames: .* 1 \+ 4 i frames; the nearest that fit: 5 and 9"),
        (lambda: wan.latent_frames(0), "the nearest that fit: 1"),
        (lambda: FrameMap(4, causal=False).latent_frames(3), "the nearest that fit: 4"),
        (lambda: FrameMap(2, causal=False).latent_frames(5), "has 2 i frames; the nearest that fit: 4 and 6"),
        (lambda: wan.by_frame(labels, "max"), "unknown reduce 'max'"),
        (lambda: FrameMap(0), "time_compression must be"),
    ]:
        with pytest.raises(ValueError, match=says):
            call()
