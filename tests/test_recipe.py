"""Data-Juicer recipes: what is read, what is refused by name, and what is noted as left aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from reelscribe.errors import DataError, SettingsError
from reelscribe.operator import OPERATOR_NAME
from reelscribe.recipe import parse_recipe, read_recipe
from reelscribe.runners.settings import build_operator
from reelscribe.settings import parameter_names


def recipe(operator: Any = None, **keys: Any) -> dict[str, Any]:
    return {"dataset_path": "in.jsonl", "export_path": "out.jsonl", "process": [{OPERATOR_NAME: operator}], **keys}


def test_the_operators_parameters_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
        dataset_path: data/in.jsonl   # a comment
        export_path: out/out.parquet
        np: 2
        text_keys: caption
        video_key: clips
        video_special_token: '<v>'
        image_special_token: '<i>'
        audio_special_token: '<a>'
        eoc_special_token: '<e>'
        process:
          - {OPERATOR_NAME}:
              hf_model: reelscribe/shapes
              caption_num: 4
              keep_candidate_mode: all
              keep_original_sample: false
              sampling_params: {{temperature: 0.9, top_p: 0.95}}
        """
    )
    found = read_recipe(path)
    assert (found.dataset_path, found.export_path, found.notes) == ("data/in.jsonl", "out/out.parquet", [])
    assert found.parameters == {
        "hf_model": "reelscribe/shapes",
        "caption_num": 4,
        "keep_candidate_mode": "all",
        "keep_original_sample": False,
        "sampling_params": {"temperature": 0.9, "top_p": 0.95},
        "num_proc": 2,
        "text_key": "caption",
        "video_key": "clips",
        "video_token": "<v>",
        "image_token": "<i>",
        "audio_token": "<a>",
        "eoc_token": "<e>",
    }
    operator = build_operator(found.parameters)
    assert operator.planner.names.tokens.all == ("<v>", "<i>", "<a>", "<e>")


def test_the_operators_own_entry_wins_over_the_top_level() -> None:
    found = parse_recipe(recipe({"video_key": "own", "num_proc": 3}, video_key="top", np=8, text_keys=["a", "b"]))
    assert found.parameters == {"video_key": "own", "num_proc": 3, "text_key": "a"}


@pytest.mark.parametrize("process", [[OPERATOR_NAME], [{OPERATOR_NAME: None}], [{OPERATOR_NAME: {}}]])
def test_the_operator_may_stand_without_parameters(process: Any) -> None:
    assert parse_recipe(recipe(process=process)).parameters == {}


def test_what_concerns_data_juicer_alone_is_noted() -> None:
    found = parse_recipe(
        recipe(
            {"memory": "70GB", "num_gpus": 1, "num_proc": -1, "caption_num": 2},
            project_name="x",
            executor_type="ray",
            export_shard_size=0,
            validators=[],
        )
    )
    assert found.parameters == {"caption_num": 2}
    assert found.notes == [
        "keys of the recipe that are not used here: project_name, executor_type",
        f"parameters of {OPERATOR_NAME} that are not used here: memory, num_gpus",
    ]


def test_workers_are_what_they_are_inside_of_data_juicer() -> None:
    assert parse_recipe(recipe({"workers": 3}, np=2)).parameters == {"num_proc": 3}


def test_the_dataset_key_may_name_one_local_file() -> None:
    entry = {"type": "local", "path": "x.jsonl", "weight": 1.0}
    for dataset in ({"configs": [entry]}, [entry]):
        assert parse_recipe(recipe(dataset_path="", dataset=dataset)).dataset_path == "x.jsonl"


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"process": []}, "needs a list `process`"),
        ({"process": None}, "needs a list `process`"),
        ({"process": [{"a": 1, "b": 2}]}, "each item of `process`"),
        ({"process": [{OPERATOR_NAME: 7}]}, "each item of `process`"),
        ({"process": [{"text_length_filter": {"min_len": 1}}, {OPERATOR_NAME: {}}]}, "contains text_length_filter"),
        ({"process": [OPERATOR_NAME, OPERATOR_NAME]}, "2 times"),
        ({"process": [{OPERATOR_NAME: {"captoin_num": 2}}]}, "no parameter 'captoin_num'; did you mean caption_num"),
        ({"process": [{OPERATOR_NAME: {"captioner": "x"}}]}, "no parameter 'captioner'"),
        ({"dataset_path": None}, "needs a dataset_path"),
        ({"export_path": ""}, "needs an export_path"),
        ({"export_type": "parquet"}, "the suffix of export_path decides"),
        ({"dataset": {"configs": []}}, "both dataset_path and dataset"),
        ({"dataset_path": "", "dataset": {"configs": [1, 2]}}, "one entry"),
        ({"dataset_path": "", "dataset": {"max_sample_num": 3, "configs": []}}, "max_sample_num"),
        ({"dataset_path": "", "dataset": [{"type": "remote", "path": "x"}]}, "type: local"),
        ({"encrypt_before_export": True}, "would not be encrypted"),
        ({"export_shard_size": 1000}, "the output is one file"),
        ({"text_key": "x"}, "did you mean text_keys"),
        ({"dataset_pth": "x"}, "did you mean dataset_path"),
    ],
)
def test_what_is_not_supported_is_an_error_that_names_it(keys: dict[str, Any], what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        parse_recipe(recipe(**keys))


def test_every_default_of_data_juicers_own_template_is_taken() -> None:
    harmless = {"suffixes": [], "validators": [], "load_dataset_kwargs": {}, "generated_dataset_config": None,
                "encrypt_before_export": False, "use_checkpoint": False, "image_key": "images"}  # fmt: skip
    assert parse_recipe(recipe(**harmless)).parameters == {}


def test_a_recipe_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(DataError, match="cannot read the recipe"):
        read_recipe(path)
    path.write_text("process: [")
    with pytest.raises(DataError, match="is not YAML: .* line 1"):
        read_recipe(path)
    path.write_text("- a list")
    with pytest.raises(SettingsError, match="must be a mapping"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("parameters", "what"),
    [
        ({"caption_num": 0}, "caption_num: input should be greater than 0; got 0"),
        ({"caption_num": "2"}, "caption_num: input should be a valid integer; got '2'"),
        (
            {"keep_candidate_mode": "best"},
            "mode: .*'random_any', 'similar_one_simhash'.*'all'; got 'best'",
        ),
        ({"hf_modle": "x"}, "no parameter 'hf_modle'; did you mean hf_model"),
        ({"zzz": 1}, "no parameter 'zzz'; choose from hf_model, enable_vllm"),
        ({"sampling_params": {"temprature": 1}}, "temperature"),
    ],
)
def test_bad_values_name_the_value_the_rule_and_the_choices_in_one_line(parameters: Any, what: str) -> None:
    with pytest.raises(SettingsError, match=what) as caught:
        build_operator(parameters)
    assert "\n" not in str(caught.value)


def test_every_plain_parameter_can_stand_in_a_recipe() -> None:
    assert "captioner" not in parameter_names()
    written = yaml.safe_load(yaml.safe_dump(dict.fromkeys(parameter_names())))
    assert set(parse_recipe(recipe(written)).parameters) == set(parameter_names())
