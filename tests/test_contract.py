from sklearn.utils.estimator_checks import parametrize_with_checks

from skjeffreys import JeffreysConditionalDensity, JeffreysDensity

#: What these demand of ``score_samples(X)`` test_conditional.py demands of ``(X, y)``.
TAKES_X_ALONE = "calls score_samples(X); the density of y given X needs both"


def expected_failures(estimator):
    if isinstance(estimator, JeffreysDensity):
        return {}
    return {
        "check_methods_sample_order_invariance": TAKES_X_ALONE,
        "check_methods_subset_invariance": TAKES_X_ALONE,
    }


@parametrize_with_checks(
    # What they check does not depend on how long training takes.
    [JeffreysDensity(max_iter=50), JeffreysConditionalDensity(max_iter=50)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)
