"""What was found out by hand about each deviation of the public layers."""

from __future__ import annotations

from pytest_bninvariants.conformance.survey.entries import Judgement

_SPLIT_LAWS = """
training_output eps_values constant_channels eval_output_after_training running_mean running_var
momentum cumulative_average counter many_batches scaling shifting state_in_place no_grad_updates
instances_are_independent reset input_gradient weight_gradient bias_gradient gradients_accumulate
graphs_are_independent output_written_in_place nonfinite_input layouts output_dtype mixed_precision
autocast settings_are_read affine_off tracking_off tracking_switched_off copies_keep_momentum
state_arrives input_unmodified training_surroundings double_backward forward_derivative
batched_gradients compile deepcopy pickle state_dict_round_trip nothing_kept hooks
needed_gradients workspaces optimizer_steps functional_call vmap_parameters
double_backward_affine_off
"""
_CLAMPED_LAWS = """
training_output eval_output eps_values eval_output_after_training eval_batch_mates scaling shifting
no_grad_updates reset eval_follows_state weight_gradient eval_input_gradient eval_weight_gradient
nonfinite_input eval_nonfinite_input layouts eval_layouts autocast settings_are_read affine_off
tracking_off tracking_switched_off state_arrives surroundings training_surroundings
forward_derivative vmap compile deepcopy pickle state_dict_round_trip needed_gradients workspaces
optimizer_steps functional_call vmap_parameters output_dtype
"""
LAZY = (
    Judgement(
        laws="construction",
        verdict="undocumented",
        why="with affine=False and track_running_stats=False there is nothing to fill in, "
        "so the first batch does not set num_features either: it stays 0.",
    ),
)
TIMM_SPLIT = (
    Judgement(
        laws="construction state_dtype",
        verdict="fault",
        why="device= and dtype= reach the auxiliary layers in aux_bn alone: "
        "SplitBatchNorm2d(3, dtype=torch.float64) has a float32 weight of its own, and "
        "float64 ones in aux_bn.",
    ),
    Judgement(
        laws="state_dict_keys",
        verdict="on purpose",
        why="state_dict() has the state of the auxiliary layers, too, as aux_bn.*.",
    ),
    Judgement(
        laws=_SPLIT_LAWS,
        verdict="on purpose",
        why="its documentation says so: in training each of num_splits equal parts of a "
        "batch is normalised by a layer of its own, and eval uses the first one's "
        "statistics. A batch that does not divide evenly raises AssertionError.",
    ),
)
WRAPPED = (
    Judgement(
        laws="construction settings_are_read tracking_switched_off",
        verdict="on purpose",
        why="it wraps a BatchNorm1d, self.module, which has the settings: num_features is "
        "in_channels, and momentum, eps or track_running_stats that are set on the outer "
        "layer have no effect.",
    ),
)
HETERO = (
    Judgement(
        laws="construction",
        verdict="on purpose",
        why="the number of channels is called in_channels.",
    ),
    Judgement(
        laws="input_gradient graphs_are_independent double_backward batched_gradients "
        "constant_channels output_written_in_place double_backward_affine_off",
        verdict="fault",
        why="its forward computes the batch's mean and variance under torch.no_grad(), so "
        "the gradient does not pass through them: for the samples 0, 1, 5 and the "
        "gradients 1, 2, -1 the input's are 0.46, 0.93, -0.46, where BatchNorm1d gives "
        "-0.31, 0.39, -0.08.",
    ),
    Judgement(
        laws="running_var momentum cumulative_average many_batches copies_keep_momentum "
        "channel_counts batch_sizes",
        verdict="undocumented",
        why="running_var keeps the biased variance, which divides by n and not by n - 1.",
    ),
    Judgement(
        laws="counter empty_batch",
        verdict="fault",
        why="num_batches_tracked counts only with momentum=None.",
    ),
    Judgement(
        laws="one_value_per_channel",
        verdict="undocumented",
        why="a batch of one sample does not raise: its output is the bias.",
    ),
    Judgement(
        laws="wrong_rank wrong_channel_count",
        verdict="undocumented",
        why="in eval sizes are not checked: a layer of one channel takes two.",
    ),
    Judgement(
        laws="running_mean bias_gradient eval_bias_gradient",
        verdict="undocumented",
        why="a half-precision layer adds up in half precision: the bias's gradient of 5000 ones is "
        "256 in bfloat16 and 2048 in float16, and the mean of 5000 values around 100 is Inf in "
        "float16.",
    ),
    Judgement(
        laws="mixed_precision",
        verdict="undocumented",
        why="a half-precision input of a float32 layer gives a float32 output.",
    ),
    Judgement(
        laws="state_dict_versions",
        verdict="on purpose",
        why="it has no older version: a state without the counter is not loaded.",
    ),
    Judgement(
        laws=_CLAMPED_LAWS,
        verdict="fault",
        why="eps is documented as a value that is added, but it divides by sqrt(max(var, eps)) and "
        "not by sqrt(var + eps), in training and in eval: with var=1 and eps=1, in eval 4 stays 4, "
        "where BatchNorm1d gives 2.83.",
    ),
)
E3NN = (
    Judgement(
        laws="empty_batch_in_eval",
        verdict="undocumented",
        why="an empty batch cannot be reshaped: RuntimeError.",
    ),
    Judgement(
        laws="mixed_precision output_dtype",
        verdict="undocumented",
        why="a half-precision input of a float32 layer gives a float32 output.",
    ),
    Judgement(
        laws="input_gradient eval_weight_gradient weight_gradient",
        verdict="undocumented",
        why="a float16 layer computes in float16: with a small variance the gradient of "
        "(var + eps) ** -0.5 overflows, and the input's gradient is NaN where BatchNorm1d "
        "gives 25.",
    ),
    Judgement(
        laws="running_var constant_channels eval_output_after_training momentum "
        "many_batches nonfinite_input "
        "layouts affine_off copies_keep_momentum training_surroundings batch_sizes "
        "channel_counts spatial_sizes no_grad_updates settings_are_read compile autocast "
        "needed_gradients",
        verdict="undocumented",
        why="running_var keeps the mean of squares, which is the biased variance: it "
        "divides by n and not by n - 1.",
    ),
)
TORCHRL_RENORM = (
    Judgement(
        laws="empty_batch",
        verdict="undocumented",
        why="an empty batch makes running_mean and running_var NaN.",
    ),
    Judgement(
        laws="reset",
        verdict="undocumented",
        why="there is no reset_running_stats() and no reset_parameters().",
    ),
    Judgement(
        laws="wrong_rank",
        verdict="on purpose",
        why="despite its name it takes each input of two dimensions or more.",
    ),
    Judgement(
        laws="mixed_precision",
        verdict="undocumented",
        why="a half-precision input of a float32 layer gives a float32 output.",
    ),
    Judgement(
        laws="cumulative_average state_in_place settings_are_read copies_keep_momentum",
        verdict="on purpose",
        why="momentum is a float in its signature: None raises TypeError in forward.",
    ),
    Judgement(
        laws="state_dict_versions",
        verdict="on purpose",
        why="it has no older version: a state without the counter is not loaded.",
    ),
    Judgement(
        laws="running_var forward_derivative momentum eval_output_after_training layouts "
        "nonfinite_input autocast spatial_sizes "
        "training_surroundings many_batches no_grad_updates",
        verdict="fault",
        why="running_var is corrected by N / (N - 1), with N the samples and not the values of a "
        "channel: right for (N, C), too large for (N, C, L), infinite for (1, C, L).",
    ),
)
SB3_RENORM = (
    Judgement(
        laws="cumulative_average state_in_place copies_keep_momentum",
        verdict="on purpose",
        why="momentum is a float in its signature: None raises TypeError in forward.",
    ),
    Judgement(
        laws="empty_batch",
        verdict="undocumented",
        why="an empty batch makes ra_mean and ra_var NaN.",
    ),
    Judgement(
        laws="wrong_rank wrong_channel_count",
        verdict="fault",
        why="its forward does not call its own check of the input: in eval inputs of one "
        "and three dimensions, and of other numbers of channels, are broadcast. The check "
        "says that three dimensions are accepted, on which training fails.",
    ),
    Judgement(
        laws="mixed_precision",
        verdict="undocumented",
        why="a half-precision input of a float32 layer gives a float32 output.",
    ),
    Judgement(
        laws="affine_off",
        verdict="fault",
        why="affine=False makes the parameters all the same, and does not use them.",
    ),
    Judgement(
        laws="training_output eps_values constant_channels scaling shifting "
        "no_grad_updates input_gradient weight_gradient graphs_are_independent "
        "output_written_in_place nonfinite_input layouts autocast settings_are_read "
        "training_surroundings double_backward forward_derivative batched_gradients "
        "batch_sizes channel_counts compile many_batches gradients_accumulate needed_gradients "
        "workspaces optimizer_steps double_backward_affine_off",
        verdict="fault",
        why="in training it normalises with the unbiased variance: the samples 0, 1, 5 "
        "become -0.76, -0.38, 1.13, where BatchNorm1d gives -0.93, -0.46, 1.39.",
    ),
)
THRESHOLD = (
    Judgement(
        laws="eval_weight_gradient weight_gradient bias_gradient eval_bias_gradient "
        "input_gradient eval_input_gradient layouts eval_layouts mixed_precision "
        "tracking_off affine_off training_output compile autocast",
        verdict="torch's own",
        why="the axis of time changes strides on axes of length 1, so the gradient lies "
        "otherwise than the input: BatchNorm2d gives the same where an input of shape "
        "(1, 2, 1, 3) has strides (6, 1, 2, 2), and its gradient is contiguous.",
    ),
)
ANY_RANK = (
    Judgement(
        laws="wrong_rank",
        verdict="on purpose",
        why="it makes no check of the input's rank, as its documentation says: an input of "
        "one dimension raises only after it was counted.",
    ),
)
GHOST = (
    Judgement(
        laws="empty_batch empty_batch_in_eval",
        verdict="undocumented",
        why="an empty batch is split into 0 chunks: RuntimeError, in training and in eval.",
    ),
    Judgement(
        laws="autocast",
        verdict="torch's own",
        why="it joins the chunks by torch.cat, which raises RuntimeError for bfloat16 under "
        "autocast to float16 on the CPU.",
    ),
)
LIGHTLY_SPLIT = (
    Judgement(
        laws="construction",
        verdict="on purpose",
        why="the second argument is num_splits, and not eps.",
    ),
    Judgement(
        laws="counter no_grad_updates empty_batch functional_call compile",
        verdict="fault",
        why="num_batches_tracked, which it inherits, is never counted.",
    ),
    Judgement(
        laws="cumulative_average settings_are_read copies_keep_momentum",
        verdict="fault",
        why="momentum=None, which it accepts, counts as 0: the running statistics stay.",
    ),
    Judgement(
        laws="affine_off output_written_in_place double_backward_affine_off",
        verdict="fault",
        why="affine=False, which it accepts, raises AttributeError in forward: the weight "
        "is None, and it is repeated.",
    ),
    Judgement(
        laws="tracking_off tracking_switched_off vmap_parameters",
        verdict="fault",
        why="track_running_stats=False, which it accepts, leaves its buffers in place, and "
        "training updates them.",
    ),
    Judgement(
        laws="state_dict_round_trip state_in_place deepcopy eval_layouts layouts",
        verdict="on purpose",
        why="eval() after training puts the mean of the splits' statistics in the place of "
        "the buffers, as new tensors.",
    ),
)
ELASTIC = (
    Judgement(
        laws="wrong_rank wrong_channel_count",
        verdict="on purpose",
        why="it is elastic: an input of fewer channels is normalised with the first ones. "
        "An input of other sizes reaches F.batch_norm, which may raise after the batch was "
        "counted.",
    ),
)
