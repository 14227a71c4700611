"""What DESIGN section 1 promises to other people's scripts, as data."""


def _words(text: str) -> list[str]:
    return text.split()


HEADER = _words("schema tool torch python device dtype argv started seed optimizers sites params columns")
SITE = _words("site kind call order root source")
PARAM = _words("name site shape group")
STEP = _words("step micro_steps time_s loss loss_scale grad_norm")
SITE_COLUMNS = _words("act_rms act_mean delta_norm zero_frac dead_frac saturated_frac nonfinite")
PARAM_COLUMNS = _words("weight_rms grad_rms update_rms grad_nonfinite grad_underflow_frac")

DIAGNOSIS = _words("schema tool header verdict findings attributions prescriptions not_checked notes profile overhead")
FINDING = _words("symptom severity where first_step last_step evidence summary")
WHERE = _words("site kind source")
EVIDENCE = _words("quantity value unit bound")
ATTRIBUTION = _words("finding cause kind decades share summary")
PRESCRIPTION = _words("remedies expected in_your_code")
REMEDY = _words("id settings")
NOT_CHECKED = _words("symptom reason")
PROFILE = _words("root site kind call order step act_rms delta_norm log10_gain zero_frac nonfinite")
OVERHEAD = _words("fraction sampled_steps steps")
TREATMENT = _words("schema diagnosis baseline control outcomes steps seeds seconds")
OUTCOME = _words(
    """remedies lr_scale effect_log10_loss interval infeasible_frac cured caused step_time_ratio verdict in_your_code"""
)
OUTCOME_VERDICTS = {"cures", "helps", "no effect", "harms", "undecided"}
VERDICTS = {"healthy", "mild", "serious", "fatal", "undecided"}

IDS = {
    "symptoms": """vanishing_gradient exploding_gradient vanishing_through_time exploding_through_time nonfinite_value
        dead_units saturated_units saturated_output symmetric_units rank_collapse unreached_parameter oversized_update
        undersized_update gradient_underflow slow_loss loss_plateau oscillating_loss loss_spike diverging_loss""",
    "causes": """activation_slope weight_gain normalization_gain between_modules other_layers unexplained
        depth_without_shortcut shortcut_growth long_unroll learning_rate input_scale loss_scale low_precision
        symmetric_init detached_graph bad_batch""",
    "remedies": """swap_activation reinit add_norm add_shortcut scale_residual clip_norm clip_value adaptive_clip
        sign_update switch_optimizer scale_lr warmup weight_decay dropout gate_recurrence orthogonal_recurrence
        truncate_bptt temporal_regularizer auxiliary_loss standardize_input loss_scaling skip_bad_batch""",
    "activations": """identity relu leaky_relu prelu elu selu celu gelu silu mish hardswish softplus sigmoid
        hard_sigmoid tanh hardtanh softsign erf sin exp maxout""",
    "inits": """torch_default xavier he lecun orthogonal lsuv critical centred_sigmoid delta_orthogonal identity fixup
        zeros uniform normal""",
}
IDS = {shelf: set(_words(text)) for shelf, text in IDS.items()}
EXTRA = {"activations": {"gelu_tanh", "lecun_tanh", "relu6"}}
"""On the shelf beyond the contract, which may be added to."""


def missing(found: dict, wanted: list[str]) -> list[str]:
    """The promised keys that are not there."""
    return [key for key in wanted if key not in found]
