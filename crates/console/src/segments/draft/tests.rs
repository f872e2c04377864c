use super::*;

fn including(ids: &[&str]) -> Condition {
    let cohorts = ids.iter().map(|id| Chosen {
        id: (*id).to_owned(),
        name: (*id).to_owned(),
    });
    Condition {
        cohorts: cohorts.collect(),
        ..Condition::new("tinyclues")
    }
}

fn excluding(id: &str) -> Condition {
    Condition {
        includes: false,
        ..including(&[id])
    }
}

fn group(rule: Rule, conditions: Vec<Condition>) -> Group {
    Group { rule, conditions }
}

fn tree(groups: &[Group]) -> Filter {
    all_of(steps(groups).into_iter().map(|step| step.filter).collect())
}

#[test]
fn groups_come_back_from_the_tree_they_make() {
    let nested = Condition {
        segment: "0195".to_owned(),
        ..Condition::on_segment()
    };
    let several = vec![
        vec![group(Rule::All, vec![including(&["a"])])],
        vec![group(
            Rule::All,
            vec![including(&["a", "b"]), excluding("c")],
        )],
        vec![
            group(Rule::All, vec![including(&["a"]), nested.clone()]),
            group(Rule::Any, vec![including(&["b"]), excluding("c")]),
            group(Rule::None, vec![including(&["d"])]),
            group(Rule::None, vec![nested, including(&["e"])]),
        ],
    ];
    for groups in several {
        assert_eq!(groups_of(&tree(&groups)), Some(groups));
    }
    // What groups cannot show stays text.
    let inner = tree(&[group(Rule::All, vec![including(&["a"]), excluding("b")])]);
    let any = node(Node::AnyOf(FilterGroup {
        filters: vec![inner],
    }));
    assert_eq!(groups_of(&any), None);
}

#[test]
fn the_path_of_an_error_leads_to_its_condition() {
    let groups = [
        group(Rule::All, vec![including(&[]), including(&["a"])]),
        group(Rule::None, vec![including(&["b"]), including(&["c"])]),
        group(Rule::Any, vec![including(&["d"])]),
    ];
    let steps = steps(&groups);
    for (path, place) in [
        ("all_of[0].cohort.cohorts[0].cohort_id", Some((0, 1))),
        ("all_of[1].not.any_of[1].cohort.partner", Some((1, 1))),
        ("all_of[2].cohort", Some((2, 0))),
        ("all_of[3].cohort", None),
        ("", None),
    ] {
        assert_eq!(condition_at(&steps, path), place, "{path}");
    }
    let alone = &super::steps(&groups[2..]);
    assert_eq!(condition_at(alone, "cohort.cohorts[0]"), Some((0, 0)));
}

fn draft(fields: &[(&str, &str)]) -> Draft {
    let fields = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Draft::read(fields.collect())
}

#[test]
fn fields_belong_to_what_was_begun_last() {
    let read = draft(&[
        ("cohort", "of nothing"),
        ("name", " loyal "),
        ("group", "none"),
        ("condition", "cohort"),
        ("partner", "tinyclues"),
        ("partner_shown", "tinyclues"),
        ("rule", "excludes"),
        ("cohort", "c_1\tspring sale"),
        ("cohort", "c_1\tspring sale"),
        ("condition", "segment"),
        ("segment", "0195"),
        ("group", "nonsense"),
        ("condition", "cohort"),
        ("partner", "amplitude"),
        ("cohort", "gone with its partner"),
        ("partner_shown", "tinyclues"),
        ("search", " spring "),
        ("do", "preview"),
    ]);
    assert_eq!(read.name, "loyal");
    let [first, second] = &read.groups[..] else {
        panic!("two groups: {read:?}");
    };
    assert_eq!((first.rule, second.rule), (Rule::None, Rule::All));
    let chosen = Chosen {
        id: "c_1".to_owned(),
        name: "spring sale".to_owned(),
    };
    assert_eq!(first.conditions[0].cohorts, [chosen]);
    assert!(!first.conditions[0].includes);
    assert_eq!(first.conditions[1].segment, "0195");
    assert_eq!(second.conditions[0].cohorts, []);
    assert_eq!(second.conditions[0].search, "spring");
}

#[test]
fn buttons_add_and_remove() {
    let mut draft = Draft::default();
    let press = |draft: &mut Draft, button: &str| {
        draft.button = button.to_owned();
        draft.press("tinyclues")
    };
    assert_eq!(press(&mut draft, "add-group"), Some((0, 0)));
    assert_eq!(press(&mut draft, "add-condition 0"), Some((0, 1)));
    assert_eq!(press(&mut draft, "add-segment 0"), Some((0, 2)));
    for nonsense in [
        "",
        "add-condition 7",
        "remove-condition 0 9",
        "remove-group x",
        "save",
    ] {
        let before = draft.groups.clone();
        assert_eq!(press(&mut draft, nonsense), None);
        assert_eq!(draft.groups, before, "{nonsense}");
    }
    press(&mut draft, "remove-condition 0 0");
    press(&mut draft, "remove-condition 0 0");
    assert_eq!(draft.groups[0].conditions, [Condition::on_segment()]);
    press(&mut draft, "remove-condition 0 0");
    assert_eq!(draft.groups, []);
}
