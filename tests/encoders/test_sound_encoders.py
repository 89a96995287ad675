"""What sound encoders promise beside the contract."""

from pathlib import Path

import pytest
import torch

from medley.encoders import ReadsSound, stack_inputs
from medley.encoders.logmel_cnn import LogMelCnnConfig
from medley.encoders.recurrent import RecurrentNetwork
from medley.encoders.transformer_audio import TransformerAudioConfig
from medley.media import decode_flac
from tests.encoder_cases import CASES, Case, Folders, save_wav2vec2, tone, tones


def test_tones_an_octave_apart_have_different_vectors_and_loudness_does_not_count():
    case = Case(LogMelCnnConfig(sample_rate_hz=8000, clip_seconds=0.5, num_mel_bins=32, width=8), [tone(440), tone(880), tone(440, gain=0.25)])
    low, high, quiet = case.encoder(case.inputs())
    assert (low - high).norm() > 5 * (low - quiet).norm()


def test_a_clip_is_cut_or_padded_with_silence():
    encoder = LogMelCnnConfig(sample_rate_hz=8000, clip_seconds=0.25, num_mel_bins=16, width=8).build({}, pretrained=True)
    silence, short, exact, long = (encoder.prepare(clip)["log_mel"] for clip in (tone(440, 500, gain=0), tone(440, 500), tone(440, 2000), tone(440, 4000)))
    assert short.shape == exact.shape == (16, 1 + 2000 // 128)
    assert torch.equal(exact, long)
    assert silence.abs().max() == 0
    assert torch.allclose(short[:, -1], short[0, -1].expand(16))  # the padded end is silent in every band
    assert short[:, 1].std() > 0.1


@pytest.mark.parametrize("name", ["ast_own", "whisper", "wav2vec2"])
def test_a_sounds_vector_is_what_transformers_itself_computes(model_folder: Folders, name: str):
    from transformers import AutoFeatureExtractor, AutoModel

    case = Case(*CASES[name](model_folder))
    model, extractor = AutoModel.from_pretrained(case.config.path).eval(), AutoFeatureExtractor.from_pretrained(case.config.path)
    samples = decode_flac(case.values[0]).numpy()  # half a second, no padding between clips
    inputs = extractor(samples, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        vector = case.encoder(case.inputs(0))[0]
        if name == "whisper":  # one second, of which half is silence: 25 of 50 positions
            expected = model.get_encoder()(inputs["input_features"]).last_hidden_state[0, :25].mean(dim=0)
        else:
            output = model(inputs["input_values"])
            expected = output.pooler_output[0] if name == "ast_own" else output.last_hidden_state[0].mean(dim=0)
    assert torch.allclose(vector, expected, atol=1e-5)


def test_wav2vec2_reads_half_a_second_alike_in_a_clip_of_one(model_folder: Folders):
    short, long = (TransformerAudioConfig(path=model_folder("wav2vec2"), clip_seconds=seconds) for seconds in (0.5, 1.0))
    vectors = [Case(config, tones(16000)[:1]) for config in (short, long)]
    with torch.no_grad():
        assert torch.allclose(vectors[0].encoder(vectors[0].inputs()), vectors[1].encoder(vectors[1].inputs()), atol=1e-4)


def test_a_wav2vec2_that_was_not_trained_with_masks_gets_none(tmp_path: Path):
    torch.manual_seed(0)
    save_wav2vec2(tmp_path, norm="group")
    case = Case(TransformerAudioConfig(path=str(tmp_path), clip_seconds=0.6), tones(16000))
    assert not case.encoder.takes_mask
    together = case.encoder(case.inputs())
    assert torch.allclose(case.encoder(case.inputs(2))[0], together[2], atol=1e-5)


@pytest.mark.parametrize("name", ["whisper", "wav2vec2"])
def test_no_layer_is_left_out_and_nothing_is_masked_in_training(model_folder: Folders, name: str):
    case = Case(*CASES[name](model_folder))
    inputs, expected = case.inputs(), case.encoder(case.inputs())
    case.encoder.train()
    assert all(torch.allclose(case.encoder(inputs), expected, atol=1e-6) for _ in range(5))


def test_sound_encoders_say_which_rate_they_read(model_folder: Folders):
    found = {name: CASES[name](model_folder)[0] for name in ("logmel_cnn", "logmel_gru", "ast", "subword")}
    rates = {name: config.reads_sample_rate_hz() for name, config in found.items() if isinstance(config, ReadsSound)}
    assert rates == {"logmel_cnn": 8000, "logmel_gru": 8000, "ast": 16000}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_recurrent_networks_states_are_torchs_own_in_both_directions(cell: str):
    torch.manual_seed(0)
    network = RecurrentNetwork(3, 4, 1, cell, "last")  # type: ignore[arg-type]
    rows = torch.randn(2, 5, 3)
    real = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    last = [network.from_beginning(rows[1:, :2])[0][0, -1], network.from_end(rows[1:, :2].flip(1))[0][0, -1]]
    vectors = network(rows, real)
    assert torch.allclose(vectors[1], network.norm(torch.cat(last)), atol=1e-6)
    assert torch.equal(network(rows.masked_fill(~real.unsqueeze(-1), 7.0), real), vectors)


def test_frames_read_together_only_shorten_the_sequence():
    case = Case(*CASES["logmel_gru"](lambda name: ""))
    frames = case.inputs()["log_mel"].shape[2]
    assert frames % 3 != 0  # the last step is filled up with zeros
    assert torch.isfinite(case.encoder(stack_inputs([case.encoder.dummy()]))).all()
