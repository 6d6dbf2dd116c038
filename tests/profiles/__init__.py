"""Edits that ship: what is promised, and which test or benchmark shows it.

Promises:

1. Hook, adapter and merged weights agree, and a disabled adapter is the base:
   `test_export.py::test_the_adapter_is_the_hook_and_the_base_when_it_is_off`,
   `test_export.py::test_the_merged_checkpoint_is_the_hook`,
   `test_export.py::test_in_float64_the_forms_agree_to_1e_12`.
2. 64 users in one batch answer as 64 single runs:
   `test_mixed.py::test_64_users_in_one_batch_answer_as_64_single_runs`.
   What it costs: ``bench --only edit,forms``.
3. The fast solver of CCS: ``bench --only ccs``; on the embedded models notebook 07, table
   ``serving_g_solvers``.
4. Memory of a fit: ``bench --only fit``,
   `../core/test_pooling.py::test_ten_times_the_users_take_the_same_memory`.
5. The store. 20 kills and 8 writers:
   `test_directory.py::test_killed_and_concurrent_writers_lose_and_corrupt_nothing`.
   Forgetting: `test_forget.py::test_nothing_of_a_forgotten_user_is_left_and_the_groups_are_named`,
   `test_serving.py::test_forgetting_a_user_leaves_no_byte_of_the_directions_in_a_serving_folder`.
   Another backbone, other weights, another revision:
   `test_store.py::test_another_backbone_other_weights_or_revision_are_refused`.
   Cut and tampered files:
   `test_store.py::test_damaged_files_are_refused_in_one_sentence_that_names_the_file`,
   `test_store.py::test_files_with_right_checksums_and_wrong_content_are_refused`.
6. Exports of all families: the tests of promise 1, and
   `test_export.py::test_the_gguf_adapter_is_the_hook`,
   `test_export.py::test_the_alora_is_the_hook_from_the_last_prompt_token_on`,
   `test_export.py::test_what_a_form_cannot_carry_is_refused_in_one_sentence`.

Traps of adapter files, in the order of the reference's list (section b.1; 11 is where b.2 begins):

1. alpha left at PEFT's default, 2. rank-stabilised scaling, 5. alpha lost in conversion:
   `test_traps.py::test_traps_1_2_5_a_wrong_scale_is_another_edit_and_refused`.
3. Padding to rank 8: `test_traps.py::test_trap_3_zero_padding_to_rank_8_is_exact`.
4. Keys without PEFT's prefix:
   `test_traps.py::test_trap_4_keys_without_the_prefix_are_the_bare_base_and_refused`.
6. The bias of the projection:
   `test_traps.py::test_trap_6_a_forgotten_bias_is_refused_and_servers_are_told`,
   `test_traps.py::test_trap_6_the_comparison_catches_a_forgotten_bias`.
7. One adapter, one base:
   `test_traps.py::test_trap_7_an_adapter_of_other_weights_is_told_from_the_hash`.
8. Quantised bases: `test_traps.py::test_trap_8_a_quantised_base_needs_its_dequantised_weight`.
9. The name of the base:
   `test_traps.py::test_trap_9_the_base_is_named_as_the_server_calls_it`.
10. Tuners that PEFT dropped:
   `test_traps.py::test_trap_10_the_adapter_is_plain_lora_and_no_tuner_that_peft_dropped`.
11. Sites and names:
   `test_traps.py::test_trap_11_t5_names_its_decoder_in_full_and_leaves_the_encoder_alone`,
   `test_traps.py::test_trap_11_gpt2_stores_its_weight_the_other_way_round`,
   `test_traps.py::test_trap_11_the_mlp_output_is_the_output_of_the_projection`.
"""
