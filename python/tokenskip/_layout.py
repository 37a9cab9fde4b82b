"""The C declarations of tokenskip.h for ctypes. Made by python/tools/make_layout.py: do not edit."""

from ctypes import (CFUNCTYPE, POINTER, Structure, c_char, c_char_p, c_double, c_float, c_int, c_int32, c_int64,
    c_size_t, c_ubyte, c_uint32, c_uint64, c_uint8, c_void_p)

# ---- Constants

TOKENSKIP_VERSION_MAJOR = 0
TOKENSKIP_VERSION_MINOR = 2
TOKENSKIP_VERSION_PATCH = 0
TSK_AUTO = -1
TSK_MAX_DIMS = 8
TSK_MAX_EOS_TOKENS = 16
TSK_NONE = -2
TSK_NO_OFFSET = 18446744073709551615

# ---- Enumerations

ENUMS = {
    "tsk_status": {"TSK_OK": 0, "TSK_ERROR_ARGUMENT": 1, "TSK_ERROR_MEMORY": 2, "TSK_ERROR_IO": 3,
        "TSK_ERROR_JSON": 4, "TSK_ERROR_SAFETENSORS": 5, "TSK_ERROR_CONFIG": 6, "TSK_ERROR_TENSOR": 7,
        "TSK_ERROR_TOKENIZER": 8, "TSK_ERROR_TEMPLATE": 9, "TSK_ERROR_UNSUPPORTED": 10, "TSK_ERROR_DEVICE": 11,
        "TSK_ERROR_COMPILE": 12, "TSK_ERROR_CANCELLED": 13, "TSK_ERROR_NUMERIC": 14, "TSK_ERROR_FULL": 15,
        "TSK_STATUS_COUNT": 16},
    "tsk_dtype": {"TSK_DTYPE_AUTO": 0, "TSK_DTYPE_F32": 1, "TSK_DTYPE_F16": 2, "TSK_DTYPE_BF16": 3,
        "TSK_DTYPE_F64": 4, "TSK_DTYPE_F8_E4M3": 5, "TSK_DTYPE_F8_E5M2": 6, "TSK_DTYPE_I64": 7, "TSK_DTYPE_I32": 8,
        "TSK_DTYPE_I16": 9, "TSK_DTYPE_I8": 10, "TSK_DTYPE_U64": 11, "TSK_DTYPE_U32": 12, "TSK_DTYPE_U16": 13,
        "TSK_DTYPE_U8": 14, "TSK_DTYPE_BOOL": 15, "TSK_DTYPE_COUNT": 16},
    "tsk_family": {"TSK_FAMILY_LLADA": 0, "TSK_FAMILY_SDAR": 1, "TSK_FAMILY_FAST_DLLM_V2": 2, "TSK_FAMILY_DREAM": 3},
    "tsk_weights": {"TSK_WEIGHTS_AS_STORED": 0, "TSK_WEIGHTS_Q8": 1, "TSK_WEIGHTS_Q4": 2},
    "tsk_device": {"TSK_DEVICE_AUTO": 0, "TSK_DEVICE_CPU": 1, "TSK_DEVICE_CUDA": 2},
    "tsk_cache": {"TSK_CACHE_AUTO": -1, "TSK_CACHE_DUAL": 0, "TSK_CACHE_PREFIX": 1, "TSK_CACHE_NONE": 2,
        "TSK_CACHE_BLOCK": 3},
    "tsk_transfer": {"TSK_TRANSFER_SCHEDULE": 0, "TSK_TRANSFER_THRESHOLD": 1, "TSK_TRANSFER_FACTOR": 2,
        "TSK_TRANSFER_FRECHET": 3, "TSK_TRANSFER_ENTROPY": 4, "TSK_TRANSFER_LEAP": 5},
    "tsk_remasking": {"TSK_REMASKING_LOW_CONFIDENCE": 0, "TSK_REMASKING_RANDOM": 1},
    "tsk_skip_rule": {"TSK_SKIP_RULE_AUTO": -1, "TSK_SKIP_RULE_OFF": 0, "TSK_SKIP_RULE_STATES": 1,
        "TSK_SKIP_RULE_ROWS": 2},
    "tsk_skip_policy": {"TSK_SKIP_REUSE": 0, "TSK_SKIP_EXIT": 1},
    "tsk_skip_reference": {"TSK_SKIP_LAST_STEP": 0, "TSK_SKIP_LAST_COMPUTED": 1},
    "tsk_refresh": {"TSK_REFRESH_AUTO": -1, "TSK_REFRESH_FULL": 0, "TSK_REFRESH_NEAR": 1},
    "tsk_finish": {"TSK_FINISH_NONE": 0, "TSK_FINISH_LENGTH": 1, "TSK_FINISH_EOS": 2, "TSK_FINISH_CANCELLED": 3},
    "tsk_json_type": {"TSK_JSON_NONE": 0, "TSK_JSON_NULL": 1, "TSK_JSON_FALSE": 2, "TSK_JSON_TRUE": 3,
        "TSK_JSON_NUMBER": 4, "TSK_JSON_STRING": 5, "TSK_JSON_ARRAY": 6, "TSK_JSON_OBJECT": 7},
    "tsk_probe_kind": {"TSK_PROBE_STEP": 0, "TSK_PROBE_STEP_ALL": 1, "TSK_PROBE_REFRESH": 2},
}

# ---- Structs


class tsk_error(Structure):
    pass


class tsk_allocator(Structure):
    pass


class tsk_file_callbacks(Structure):
    pass


class tsk_host(Structure):
    pass


class tsk_text(Structure):
    pass


class tsk_tokens(Structure):
    pass


class tsk_decoder(Structure):
    pass


class tsk_message(Structure):
    pass


class tsk_chat_options(Structure):
    pass


class tsk_model_config(Structure):
    pass


class tsk_folder_tensor(Structure):
    pass


class tsk_quantize_options(Structure):
    pass


class tsk_device_info(Structure):
    pass


class tsk_model_options(Structure):
    pass


class tsk_skip_options(Structure):
    pass


class tsk_generate_options(Structure):
    pass


class tsk_step(Structure):
    pass


class tsk_candidate(Structure):
    pass


class tsk_selection(Structure):
    pass


class tsk_transfer_rule(Structure):
    pass


class tsk_block_result(Structure):
    pass


class tsk_result(Structure):
    pass


class tsk_batch_options(Structure):
    pass


class tsk_batch_status(Structure):
    pass


class tsk_memory_query(Structure):
    pass


class tsk_memory(Structure):
    pass


class tsk_weights_format(Structure):
    pass


class tsk_stats(Structure):
    pass


class tsk_trace_record(Structure):
    pass


class tsk_trace_options(Structure):
    pass


class tsk_json_writer(Structure):
    pass


class tsk_tensor_info(Structure):
    pass


class tsk_probe(Structure):
    pass


class tsk_ceilings(Structure):
    pass


# ---- Callbacks

tsk_allocator_allocate = CFUNCTYPE(c_void_p, c_void_p, c_size_t)
tsk_allocator_reallocate = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_size_t, c_size_t)
tsk_allocator_release = CFUNCTYPE(None, c_void_p, c_void_p)
tsk_file_callbacks_open = CFUNCTYPE(c_int, c_void_p, c_char_p, POINTER(c_void_p), POINTER(c_uint64), POINTER(c_char),
    c_size_t)
tsk_file_callbacks_read = CFUNCTYPE(c_int, c_void_p, c_void_p, c_uint64, c_void_p, c_size_t, POINTER(c_char),
    c_size_t)
tsk_file_callbacks_map = CFUNCTYPE(c_void_p, c_void_p, c_void_p)
tsk_file_callbacks_close = CFUNCTYPE(None, c_void_p, c_void_p)
tsk_quantize_options_progress = CFUNCTYPE(None, c_void_p, c_uint64, c_uint64)
tsk_quantize_options_cancel = CFUNCTYPE(c_int, c_void_p)
tsk_model_options_progress = CFUNCTYPE(None, c_void_p, c_uint64, c_uint64)
tsk_model_options_cancel = CFUNCTYPE(c_int, c_void_p)
tsk_model_options_log = CFUNCTYPE(None, c_void_p, c_char_p)
tsk_generate_options_on_step = CFUNCTYPE(c_int, c_void_p, POINTER(tsk_step))
tsk_generate_options_on_select = CFUNCTYPE(None, c_void_p, POINTER(tsk_selection))
tsk_generate_options_cancel = CFUNCTYPE(c_int, c_void_p)
tsk_batch_options_on_done = CFUNCTYPE(None, c_void_p, c_uint64, c_void_p, POINTER(tsk_result), POINTER(tsk_error))
tsk_batch_options_log = CFUNCTYPE(None, c_void_p, c_char_p)
tsk_trace_options_on_record = CFUNCTYPE(None, c_void_p, POINTER(tsk_trace_record))

# ---- Fields, in an order in which each struct knows those inside it

tsk_error._fields_ = [("offset", c_uint64), ("status", c_int), ("message", c_char * 512), ("file", c_char * 256)]
tsk_allocator._fields_ = [("allocate", tsk_allocator_allocate), ("reallocate", tsk_allocator_reallocate),
    ("release", tsk_allocator_release), ("user", c_void_p)]
tsk_file_callbacks._fields_ = [("open", tsk_file_callbacks_open), ("read", tsk_file_callbacks_read),
    ("map", tsk_file_callbacks_map), ("close", tsk_file_callbacks_close), ("user", c_void_p)]
tsk_host._fields_ = [("allocator", POINTER(tsk_allocator)), ("files", POINTER(tsk_file_callbacks)), ("no_map", c_int)]
tsk_text._fields_ = [("data", POINTER(c_char)), ("length", c_size_t), ("capacity", c_size_t),
    ("allocator", POINTER(tsk_allocator))]
tsk_tokens._fields_ = [("ids", POINTER(c_int32)), ("count", c_int32), ("capacity", c_int32),
    ("allocator", POINTER(tsk_allocator))]
tsk_decoder._fields_ = [("pending", c_ubyte * 4), ("n_pending", c_int), ("skip_special", c_int)]
tsk_message._fields_ = [("role", c_char_p), ("content", c_char_p)]
tsk_chat_options._fields_ = [("special_in_text", c_int), ("thinking", c_int)]
tsk_model_config._fields_ = [("d_model", c_int32), ("n_layers", c_int32), ("n_heads", c_int32),
    ("n_kv_heads", c_int32), ("mlp_hidden_size", c_int32), ("head_dim", c_int32), ("vocab_size", c_int32),
    ("embedding_size", c_int32), ("max_sequence_length", c_int32), ("mask_token_id", c_int32),
    ("eos_token_id", c_int32), ("pad_token_id", c_int32), ("n_eos_token_ids", c_int32),
    ("eos_token_ids", c_int32 * 16), ("rope_theta", c_float), ("rms_norm_eps", c_float), ("weight_tying", c_int),
    ("qkv_bias", c_int), ("linear_bias", c_int), ("family", c_int), ("block_length", c_int32)]
tsk_folder_tensor._fields_ = [("info", POINTER(tsk_tensor_info)), ("shard", c_char_p)]
tsk_quantize_options._fields_ = [("host", tsk_host), ("weights", c_int), ("shard_size", c_uint64),
    ("n_threads", c_int), ("progress", tsk_quantize_options_progress), ("cancel", tsk_quantize_options_cancel),
    ("user", c_void_p)]
tsk_device_info._fields_ = [("device", c_int), ("index", c_int32), ("name", c_char * 128), ("memory_total", c_uint64),
    ("memory_free", c_uint64), ("unusable", c_char * 256)]
tsk_model_options._fields_ = [("host", tsk_host), ("device", c_int), ("device_index", c_int), ("dtype", c_int),
    ("n_threads", c_int), ("kernel_cache_dir", c_char_p), ("weights", c_int), ("no_tokenizer", c_int),
    ("progress", tsk_model_options_progress), ("cancel", tsk_model_options_cancel), ("log", tsk_model_options_log),
    ("user", c_void_p)]
tsk_skip_options._fields_ = [("rule", c_int), ("rows_margin", c_int32), ("rows_ahead", c_int32), ("layer_k", c_int32),
    ("threshold", c_float), ("outlier", c_float), ("policy", c_int), ("masked", c_int), ("reference", c_int),
    ("max_age", c_int32), ("full_every", c_int32), ("warm_start", c_int), ("refresh", c_int)]
tsk_generate_options._fields_ = [("gen_length", c_int32), ("block_length", c_int32), ("small_block", c_int32),
    ("steps", c_int32), ("cache", c_int), ("prompt_rows", c_int32), ("transfer", c_int), ("threshold", c_float),
    ("factor", c_float), ("frechet", c_float), ("entropy_bound", c_float), ("local_leap", c_float),
    ("local_radius", c_int32), ("temperature", c_float), ("remasking", c_int), ("seed", c_uint64),
    ("eos_stop", c_int), ("end_of_turn_id", c_int32), ("skip", tsk_skip_options), ("refresh", c_int),
    ("refresh_near", c_int32), ("refresh_window", c_int32), ("refresh_rows", c_int32), ("refresh_every", c_int32),
    ("on_step", tsk_generate_options_on_step), ("on_select", tsk_generate_options_on_select),
    ("cancel", tsk_generate_options_cancel), ("user", c_void_p)]
tsk_step._fields_ = [("pass", c_int32), ("block", c_int32), ("block_step", c_int32), ("is_refresh", c_int),
    ("is_prompt", c_int), ("is_storing", c_int), ("next_committed", c_int32), ("n_positions", c_int32),
    ("positions", POINTER(c_int32)), ("predictions", POINTER(c_int32)), ("confidences", POINTER(c_float)),
    ("entropies", POINTER(c_float)), ("committed", POINTER(c_uint8)), ("active", POINTER(c_uint8)),
    ("n_active", c_int32), ("n_stable_masked", c_int32), ("n_rows", c_int32), ("n_cosines", c_int32),
    ("cosines", POINTER(c_float)), ("masks_left", c_int32), ("canvas_length", c_int32), ("prompt_length", c_int32),
    ("canvas", POINTER(c_int32)), ("mask_token_id", c_int32), ("n_final", c_int32)]
tsk_candidate._fields_ = [("position", c_int32), ("id", c_int32), ("confidence", c_float), ("entropy", c_float)]
tsk_selection._fields_ = [("pass", c_int32), ("block", c_int32), ("block_step", c_int32), ("quota", c_int32),
    ("n", c_int32), ("candidates", POINTER(tsk_candidate)), ("commit", POINTER(c_uint8))]
tsk_transfer_rule._fields_ = [("transfer", c_int), ("threshold", c_float), ("factor", c_float), ("frechet", c_float),
    ("entropy_bound", c_float), ("local_leap", c_float), ("local_radius", c_int32), ("quota", c_int32)]
tsk_block_result._fields_ = [("nfe", c_int32), ("mask_residual", c_int32)]
tsk_result._fields_ = [("tokens", POINTER(c_int32)), ("n_tokens", c_int32), ("n_before_end", c_int32),
    ("canvas", POINTER(c_int32)), ("n_prompt", c_int32), ("nfe", c_int32), ("prompt_passes", c_int32),
    ("storing_passes", c_int32), ("mask_residual", c_int32), ("finish_reason", c_int),
    ("blocks", POINTER(tsk_block_result)), ("n_blocks", c_int32), ("active", POINTER(c_int32)),
    ("stable_masked", POINTER(c_int32)), ("n_block_steps", c_int32), ("token_layers_computed", c_uint64),
    ("token_layers_total", c_uint64), ("refresh_token_layers_computed", c_uint64),
    ("refresh_token_layers_total", c_uint64), ("refreshed_rows", c_uint64), ("rows", c_uint64),
    ("refresh_ms", c_double), ("block_step_ms", c_double), ("total_ms", c_double), ("prompt_ms", c_double),
    ("storing_ms", c_double), ("refreshes", c_int32), ("block_steps", c_int32)]
tsk_batch_options._fields_ = [("max_requests", c_int32), ("max_queued", c_int32), ("cache_tokens", c_int32),
    ("max_rows", c_int32), ("row_layers", c_int64), ("on_done", tsk_batch_options_on_done),
    ("log", tsk_batch_options_log), ("user", c_void_p)]
tsk_batch_status._fields_ = [("in_flight", c_int32), ("queued", c_int32), ("ending", c_int32), ("rows", c_int32),
    ("row_layers", c_int64), ("ms", c_double)]
tsk_memory_query._fields_ = [("config", POINTER(tsk_model_config)), ("weights_size", c_int64), ("weights", c_int),
    ("device", c_int), ("dtype", c_int), ("canvas", c_int32), ("generate", POINTER(tsk_generate_options)),
    ("batch", POINTER(tsk_batch_options))]
tsk_memory._fields_ = [("weights", c_uint64), ("cache", c_uint64), ("workspace", c_uint64)]
tsk_weights_format._fields_ = [("name", c_char * 80), ("dtype", c_int), ("bits", c_int32), ("n_tensors", c_int32),
    ("n_parameters", c_uint64), ("bytes", c_uint64)]
tsk_stats._fields_ = [("mean", c_double), ("std", c_double), ("min", c_double), ("max", c_double),
    ("abs_mean", c_double)]
tsk_trace_record._fields_ = [("name", c_char_p), ("part", c_char_p), ("pass", c_int32), ("layer", c_int32),
    ("n_rows", c_int32), ("positions", POINTER(c_int32)), ("n_dims", c_int), ("input_shape", c_uint64 * 3),
    ("output_shape", c_uint64 * 3), ("stats", tsk_stats), ("input", POINTER(c_float)), ("output", POINTER(c_float))]
tsk_trace_options._fields_ = [("pattern", c_char_p), ("first_layer", c_int32), ("last_layer", c_int32),
    ("first_pass", c_int32), ("last_pass", c_int32), ("values", c_int), ("on_record", tsk_trace_options_on_record),
    ("user", c_void_p)]
tsk_json_writer._fields_ = [("out", POINTER(tsk_text)), ("status", c_int), ("needs_comma", c_int)]
tsk_tensor_info._fields_ = [("name", c_char_p), ("dtype", c_int), ("n_dims", c_int), ("shape", c_uint64 * 8),
    ("offset", c_uint64), ("size", c_uint64)]
tsk_probe._fields_ = [("n_positions", c_int32), ("positions", POINTER(c_int32)), ("active", POINTER(c_uint8)),
    ("n_cosines", c_int32), ("cosines", POINTER(c_float))]
tsk_ceilings._fields_ = [("bytes_per_second", c_double), ("flops_per_second", c_double)]

STRUCTS = (tsk_error, tsk_allocator, tsk_file_callbacks, tsk_host, tsk_text, tsk_tokens, tsk_decoder, tsk_message,
    tsk_chat_options, tsk_model_config, tsk_folder_tensor, tsk_quantize_options, tsk_device_info, tsk_model_options,
    tsk_skip_options, tsk_generate_options, tsk_step, tsk_candidate, tsk_selection, tsk_transfer_rule,
    tsk_block_result, tsk_result, tsk_batch_options, tsk_batch_status, tsk_memory_query, tsk_memory,
    tsk_weights_format, tsk_stats, tsk_trace_record, tsk_trace_options, tsk_json_writer, tsk_tensor_info, tsk_probe,
    tsk_ceilings)

# ---- Functions: the result, then the parameters

FUNCTIONS = {
    "tsk_status_string": (c_char_p, c_int),
    "tsk_version": (c_int32,),
    "tsk_version_string": (c_char_p,),
    "tsk_text_append": (c_int, POINTER(tsk_text), c_char_p, c_size_t),
    "tsk_text_free": (None, POINTER(tsk_text)),
    "tsk_tokens_append": (c_int, POINTER(tsk_tokens), POINTER(c_int32), c_int32),
    "tsk_tokens_free": (None, POINTER(tsk_tokens)),
    "tsk_read_file": (c_int, c_char_p, c_size_t, POINTER(tsk_host), POINTER(tsk_text), POINTER(tsk_error)),
    "tsk_tokenizer_load": (c_int, c_char_p, POINTER(tsk_host), POINTER(c_void_p), POINTER(tsk_error)),
    "tsk_tokenizer_free": (None, c_void_p),
    "tsk_tokenizer_size": (c_int32, c_void_p),
    "tsk_tokenizer_id": (c_int32, c_void_p, c_char_p),
    "tsk_tokenizer_is_special": (c_int, c_void_p, c_int32),
    "tsk_tokenizer_token": (c_char_p, c_void_p, c_int32, POINTER(c_size_t)),
    "tsk_tokenizer_encode": (c_int, c_void_p, c_char_p, c_size_t, c_int, POINTER(tsk_tokens), POINTER(tsk_error)),
    "tsk_tokenizer_decode": (c_int, c_void_p, POINTER(c_int32), c_int32, c_int, POINTER(tsk_text),
        POINTER(tsk_error)),
    "tsk_decoder_push": (c_int, c_void_p, POINTER(tsk_decoder), c_int32, POINTER(tsk_text), POINTER(tsk_error)),
    "tsk_decoder_flush": (c_int, POINTER(tsk_decoder), POINTER(tsk_text)),
    "tsk_chat_render": (c_int, c_void_p, POINTER(tsk_message), c_size_t, POINTER(tsk_text), POINTER(tsk_error)),
    "tsk_chat_encode": (c_int, c_void_p, POINTER(tsk_message), c_size_t, c_int, POINTER(tsk_tokens),
        POINTER(tsk_error)),
    "tsk_chat_options_default": (tsk_chat_options,),
    "tsk_chat_render_with": (c_int, c_void_p, POINTER(tsk_message), c_size_t, POINTER(tsk_chat_options),
        POINTER(tsk_text), POINTER(tsk_error)),
    "tsk_chat_encode_with": (c_int, c_void_p, POINTER(tsk_message), c_size_t, POINTER(tsk_chat_options),
        POINTER(tsk_tokens), POINTER(tsk_error)),
    "tsk_chat_end_of_turn": (c_int32, c_void_p),
    "tsk_dtype_name": (c_char_p, c_int),
    "tsk_dtype_size": (c_size_t, c_int),
    "tsk_folder_open": (c_int, c_char_p, POINTER(tsk_host), POINTER(c_void_p), POINTER(tsk_error)),
    "tsk_folder_free": (None, c_void_p),
    "tsk_folder_config": (POINTER(tsk_model_config), c_void_p),
    "tsk_folder_quant_method": (c_char_p, c_void_p),
    "tsk_config_load": (c_int, c_char_p, POINTER(tsk_host), POINTER(tsk_model_config), POINTER(tsk_error)),
    "tsk_family_name": (c_char_p, c_int),
    "tsk_config_by_blocks": (c_int, POINTER(tsk_model_config)),
    "tsk_config_is_eos": (c_int, POINTER(tsk_model_config), c_int32),
    "tsk_folder_count": (c_size_t, c_void_p),
    "tsk_folder_get": (POINTER(tsk_folder_tensor), c_void_p, c_size_t),
    "tsk_quantize_options_default": (tsk_quantize_options,),
    "tsk_quantize": (c_int, c_char_p, c_char_p, POINTER(tsk_quantize_options), POINTER(tsk_error)),
    "tsk_devices": (c_int32, POINTER(tsk_device_info), c_int32),
    "tsk_model_options_default": (tsk_model_options,),
    "tsk_model_load": (c_int, c_char_p, POINTER(tsk_model_options), POINTER(c_void_p), POINTER(tsk_error)),
    "tsk_model_free": (None, c_void_p),
    "tsk_model_get_config": (POINTER(tsk_model_config), c_void_p),
    "tsk_model_tokenizer": (c_void_p, c_void_p),
    "tsk_model_device_name": (c_char_p, c_void_p),
    "tsk_model_dtype": (c_int, c_void_p),
    "tsk_model_device_note": (c_char_p, c_void_p),
    "tsk_select": (c_int32, POINTER(tsk_transfer_rule), c_int32, POINTER(tsk_candidate), POINTER(c_uint8)),
    "tsk_step_text": (c_int, c_void_p, POINTER(tsk_step), POINTER(tsk_text), POINTER(tsk_error)),
    "tsk_generate_options_default": (tsk_generate_options,),
    "tsk_generate_options_resolve": (None, c_void_p, POINTER(tsk_generate_options)),
    "tsk_session_create": (c_int, c_void_p, POINTER(tsk_generate_options), POINTER(c_void_p), POINTER(tsk_error)),
    "tsk_session_free": (None, c_void_p),
    "tsk_session_start": (c_int, c_void_p, POINTER(c_int32), c_int32, POINTER(c_int32), POINTER(tsk_error)),
    "tsk_session_step": (c_int, c_void_p, POINTER(c_int), POINTER(tsk_error)),
    "tsk_session_result": (None, c_void_p, POINTER(tsk_result)),
    "tsk_generate": (c_int, c_void_p, POINTER(c_int32), c_int32, POINTER(c_int32), POINTER(tsk_result),
        POINTER(tsk_error)),
    "tsk_session_logits": (c_int, c_void_p, POINTER(c_int32), c_int32, c_int32, c_int32, POINTER(c_float),
        POINTER(tsk_error)),
    "tsk_batch_options_default": (tsk_batch_options,),
    "tsk_batch_create": (c_int, c_void_p, POINTER(tsk_batch_options), POINTER(c_void_p), POINTER(tsk_error)),
    "tsk_batch_free": (None, c_void_p),
    "tsk_batch_submit": (c_int, c_void_p, POINTER(c_int32), c_int32, POINTER(c_int32), POINTER(tsk_generate_options),
        c_void_p, POINTER(c_uint64), POINTER(tsk_error)),
    "tsk_batch_cancel": (None, c_void_p, c_uint64),
    "tsk_batch_step": (c_int, c_void_p, POINTER(tsk_batch_status), POINTER(tsk_error)),
    "tsk_batch_wait": (c_int, c_void_p, c_int32),
    "tsk_batch_drain": (c_int, c_void_p, POINTER(tsk_error)),
    "tsk_memory_query_default": (tsk_memory_query,),
    "tsk_memory_estimate": (c_int, POINTER(tsk_memory_query), POINTER(tsk_memory), POINTER(tsk_error)),
    "tsk_folder_weights_size": (c_uint64, c_void_p),
    "tsk_folder_formats": (c_int32, c_void_p, c_int, POINTER(tsk_weights_format), c_int32),
    "tsk_trace_options_default": (tsk_trace_options,),
    "tsk_session_trace": (c_int, c_void_p, POINTER(tsk_trace_options), POINTER(tsk_error)),
    "tsk_json_parse": (c_int, c_char_p, c_size_t, c_char_p, POINTER(tsk_allocator), POINTER(c_void_p),
        POINTER(tsk_error)),
    "tsk_json_free": (None, c_void_p),
    "tsk_json_root": (c_void_p, c_void_p),
    "tsk_json_type_of": (c_int, c_void_p),
    "tsk_json_offset": (c_uint64, c_void_p),
    "tsk_json_count": (c_size_t, c_void_p),
    "tsk_json_first": (c_void_p, c_void_p),
    "tsk_json_next": (c_void_p, c_void_p),
    "tsk_json_key": (c_char_p, c_void_p, POINTER(c_size_t)),
    "tsk_json_get": (c_void_p, c_void_p, c_char_p),
    "tsk_json_string": (c_char_p, c_void_p, POINTER(c_size_t)),
    "tsk_json_double": (c_int, c_void_p, POINTER(c_double)),
    "tsk_json_int64": (c_int, c_void_p, POINTER(c_int64)),
    "tsk_json_uint64": (c_int, c_void_p, POINTER(c_uint64)),
    "tsk_json_bool": (c_int, c_void_p, POINTER(c_int)),
    "tsk_json_begin_object": (None, POINTER(tsk_json_writer)),
    "tsk_json_end_object": (None, POINTER(tsk_json_writer)),
    "tsk_json_begin_array": (None, POINTER(tsk_json_writer)),
    "tsk_json_end_array": (None, POINTER(tsk_json_writer)),
    "tsk_json_write_key": (None, POINTER(tsk_json_writer), c_char_p),
    "tsk_json_write_string": (None, POINTER(tsk_json_writer), c_char_p, c_size_t),
    "tsk_json_write_int": (None, POINTER(tsk_json_writer), c_int64),
    "tsk_json_write_uint": (None, POINTER(tsk_json_writer), c_uint64),
    "tsk_json_write_double": (None, POINTER(tsk_json_writer), c_double),
    "tsk_json_write_bool": (None, POINTER(tsk_json_writer), c_int),
    "tsk_json_write_null": (None, POINTER(tsk_json_writer)),
    "tsk_safetensors_open": (c_int, c_char_p, POINTER(tsk_host), POINTER(c_void_p), POINTER(tsk_error)),
    "tsk_safetensors_free": (None, c_void_p),
    "tsk_safetensors_count": (c_size_t, c_void_p),
    "tsk_safetensors_get": (POINTER(tsk_tensor_info), c_void_p, c_size_t),
    "tsk_safetensors_find": (POINTER(tsk_tensor_info), c_void_p, c_char_p),
    "tsk_safetensors_metadata": (c_void_p, c_void_p),
    "tsk_safetensors_data": (c_void_p, c_void_p, POINTER(tsk_tensor_info)),
    "tsk_safetensors_read": (c_int, c_void_p, POINTER(tsk_tensor_info), c_uint64, c_void_p, c_size_t,
        POINTER(tsk_error)),
    "tsk_safetensors_writer_open": (c_int, c_char_p, POINTER(tsk_allocator), POINTER(c_void_p), POINTER(tsk_error)),
    "tsk_safetensors_writer_add": (c_int, c_void_p, c_char_p, c_int, c_int, POINTER(c_uint64), c_void_p,
        POINTER(tsk_error)),
    "tsk_safetensors_writer_metadata": (c_int, c_void_p, c_int32, POINTER(POINTER(c_char)), POINTER(POINTER(c_char)),
        POINTER(tsk_error)),
    "tsk_safetensors_writer_finish": (c_int, c_void_p, POINTER(tsk_error)),
    "tsk_safetensors_writer_free": (None, c_void_p),
    "tsk_model_random": (c_int, POINTER(tsk_model_config), c_uint64, POINTER(tsk_model_options), POINTER(c_void_p),
        POINTER(tsk_error)),
    "tsk_session_copy": (c_int, c_void_p, c_void_p, POINTER(tsk_error)),
    "tsk_session_probe": (c_int, c_void_p, POINTER(c_int32), c_int, POINTER(tsk_probe), POINTER(tsk_error)),
    "tsk_session_probe_logits": (c_int, c_void_p, POINTER(c_float), POINTER(c_float), POINTER(tsk_error)),
    "tsk_model_ceilings": (c_int, c_void_p, POINTER(tsk_ceilings), POINTER(tsk_error)),
    "tsk_session_force": (c_int, c_void_p, c_int32, c_int32, POINTER(tsk_error)),
    "tsk_batch_force": (c_int, c_void_p, c_int32, c_int32, POINTER(tsk_error)),
    "tsk_num_transfer_tokens": (None, c_int32, c_int32, POINTER(c_int32)),
    "tsk_philox4x32": (None, POINTER(c_uint32), POINTER(c_uint32), POINTER(c_uint32)),
}
